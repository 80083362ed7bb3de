"""The jobs under their old module name, which pickles of queued jobs contain; removed in the next release."""

from launch.job.jobs import EvaluateJob, ExtractJob, TrainJob

__all__ = ["EvaluateJob", "ExtractJob", "TrainJob"]
