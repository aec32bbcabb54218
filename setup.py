"""The package: five rooms that are imported by name, and what each way of using them needs."""

from setuptools import find_packages, setup

ROOMS = ["kernels", "engine", "datagen", "evaluation", "launch"]

setup(
    name="okapi-rlhf",
    # It must stay 0.1.x, here and in kernels/__init__.py. `kernels` is also the import name of a Hugging Face package,
    # whose version transformers asks for when it is imported: at 0.1.x it takes ours for one too old to use.
    version="0.1.0",
    license="Apache-2.0",
    description="Instruction tuning with RLHF for BLOOM and LLaMA in 26 languages, on raw PyTorch and DeepSpeed",
    # transformers 5.23 starts at 3.11.
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")]),
    package_data={
        "kernels": ["*/*.h", "*/*.cpp"],
        "datagen": ["text/*.json", "kits/*.json", "seeds/*.jsonl", "templates/*.txt", "annotation/page/*"],
    },
    install_requires=[
        "torch>=2.11",
        "deepspeed>=0.19",
        "transformers>=5.20",
        "sentencepiece>=0.2.1",
        "tokenizers>=0.22",
        "aiohttp>=3.11",
        "rouge-score>=0.1.2",
        "numpy>=2.1",
        "msgpack>=1.1",
        "py3langid>=0.4",
        "safetensors>=0.6",
        "tensorboard>=2.19",
        "tqdm>=4.67",
        "pyyaml>=6.0.2",
        "matplotlib>=3.10",
        "rapidfuzz>=3.13",
        "gguf>=0.17",
    ],
    extras_require={
        "gpu": ["triton>=3.6; platform_system == 'Linux'", "ninja"],
        "monitors": ["wandb"],
        "hub": ["datasets"],
        "chrf": ["sacrebleu"],
        # What the benches and tests compare with; tenacity is for lm-eval's client of an API.
        "peers": ["trl", "liger-kernel", "lm-eval==0.4.13", "datasets", "openai", "tenacity"],
        "dev": [
            "pytest",
            "hypothesis",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "ninja",
            "sacrebleu",
            "triton>=3.6; platform_system == 'Linux'",
        ],
    },
)
