"""Packaging: `masp` (the library and its command line) and `launch` (jobs on Slurm).

The version ranges here are those that MASP works with; `constraints.txt` pins the versions it is tested with. The YAML
files in `configs/` are for users to edit; an installation has a copy in `masp/configs/` (see `masp.config.packaged`).
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
README = HERE / "README.md"
SERVE = [
    "fastapi>=0.120",
    "prometheus_client>=0.21",
    "python-multipart>=0.0.20",
    "starlette>=0.46",
    "uvicorn>=0.34",
]
TRACKERS = ["mlflow-skinny>=3.1", "wandb>=0.22"]


class BuildWithConfigs(build_py):
    """Copies `configs/` into the package, except in an editable installation, where both stay in the repository."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "masp", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / "configs", target, ignore=lambda _, names: [n for n in names if n.startswith(".")])


setup(
    name="masp",
    version=re.search(r'__version__ = "(.+)"', (HERE / "masp" / "__init__.py").read_text(encoding="utf-8")).group(1),
    description="Recognizes the emotion that an image evokes, with small modules around a frozen vision-language model",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["masp", "masp.*", "launch", "launch.*"]),
    # Stated although it is the default: an editable installation is then a path in a .pth file. An import hook would
    # come after the working directory, where a clone named `masp` looks like an empty namespace package.
    package_dir={"": "."},
    # The demo's VLM, the templates of the reports and the page of `masp app` are read at run time.
    package_data={
        "masp": ["py.typed", "*.pyi", "**/*.j2", "demo/tiny_vlm/weights/*", "inference/serving/assets/*"],
        "launch": ["py.typed"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=[
        "braceexpand>=0.1.7",
        "deepspeed>=0.19.8,<0.20",
        "fsspec>=2025.3",
        "h5py>=3.12",
        "huggingface_hub>=1.31",
        "isal>=1.7",
        "jinja2>=3.1.4",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "packaging>=23",
        "pillow>=11",
        "pyarrow>=18",
        "pydantic>=2.12,<3",
        "pyyaml>=6.0",
        "safetensors>=0.5",
        "scikit-learn>=1.7",
        "scipy>=1.13",
        "submitit>=1.5.4,<1.6",
        "tensorboard>=2.18",
        "tokenizers>=0.21",
        "torch>=2.10,<2.14",
        "tqdm>=4.66",
        "transformers>=5.23,<6",
        "webdataset>=1.0.2,<2",
    ],
    extras_require={
        "duplicates": ["imagehash>=4.3"],
        "parquet": [],  # pyarrow is always required now; the name stays valid
        "quantization": ["torchao>=0.18,<0.19"],
        "serve": SERVE,
        "app": SERVE,
        "smolvlm": ["num2words>=0.5.14"],
        "trackers": TRACKERS,
        "test": [
            *SERVE,
            *TRACKERS,
            "imagehash>=4.3",
            "hypothesis>=6.100",
            "ipykernel>=7.0",
            "mypy>=2.4",
            "nbclient>=0.10",
            "num2words>=0.5.14",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.17",
            "torchao>=0.18,<0.19",
            "types-PyYAML>=6.0",
        ],
    },
    entry_points={"console_scripts": ["masp = masp.cli.main:run_process"]},
)
