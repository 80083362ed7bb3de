# What `import masp` offers; see `__init__.py`, which imports it when it is first used.
from masp.inference.cached import CacheDataset as CacheDataset
from masp.inference.cached import open_cache as open_cache
from masp.inference.model import Model as Model
from masp.inference.model import Prediction as Prediction
from masp.inference.model import load as load
from masp.results.explanations.explanation import AspectExplanation as AspectExplanation
from masp.results.explanations.explanation import Explanation as Explanation

__version__: str
__all__: list[str]
