"""A job that says what it sees, run as submitit runs it."""

IMPORTS = """
import os
for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]:
    del os.environ[name]
import submitit, launch.job.jobs, masp.distributed.liveness, masp.distributed.ranks, masp.runtime.run_directory
"""
"""What the server of the probes does before it forks them, which spares each of them the import of torch."""

PROBE = """
import os, sys, signal, time
import launch.job.requeue
launch.job.requeue._WAIT_FOR_END_S = 0
from launch.job.jobs import TrainJob
from masp.errors import InputError, StoppedEarly

class Probe(TrainJob):
    def work(self, config, stop):
        from masp.distributed.ranks import read_ranks
        print(read_ranks(), flush=True)
        what = os.environ.get("PROBE", "")
        if what == "bad":
            raise InputError("a.b = 1: must be 2")
        if what.startswith("raise "):
            import types, masp.distributed.liveness, masp.runtime.run_directory
            error = eval(what.removeprefix("raise "))
            def train(*_, **__):
                raise error
            sys.modules["masp.training.loop"] = types.SimpleNamespace(train=train)
            sys.modules["masp.training.checkpoint"] = types.SimpleNamespace(latest_name=lambda _: None)
            return TrainJob.work(self, config, stop)
        if what:
            os.kill(os.getpid(), getattr(signal, what))
            assert stop
            raise StoppedEarly("stopped after step 3")

# As submitit does before it calls the job.
signal.signal(signal.SIGUSR2, lambda *_: sys.exit("submitit's handler"))
signal.signal(signal.SIGTERM, lambda *_: print("bypassed"))
if "AT_EXIT" in os.environ:
    import atexit
    atexit.register(lambda: print(signal.getsignal(signal.SIGTERM).name))
if os.environ.get("PROBE") == "old pickle":
    import pickle, types
    def train(config, stage, **more):
        print("trained", stage, "of", config.output_dir, sorted(more))
    sys.modules["masp.training.loop"] = types.SimpleNamespace(train=train)
    data = pickle.dumps(TrainJob(sys.argv[1], 2, stage="stage2"), protocol=0)
    pickle.loads(data.replace(b"launch.job.jobs\\n", b"launch.jobs\\n"))()
else:
    Probe(sys.argv[1], 2, stage="stage1")()
"""

SRUN = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "17",
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "0",
}

LOST = SRUN | {"SLURM_PROCID": "3", "PROBE": "raise masp.distributed.liveness.RankLost('rank 1 ended without a word')"}
