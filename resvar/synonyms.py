"""What users mean by the name of a setting that other programs have and resvar does not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

SYNONYMS = {
    "variant": "model arch architecture network net ordering preact",
    "depth": "layers num_layers n_layers size",
    "unit": "block block_type residual_unit bottleneck",
    "cardinality": "groups num_groups",
    "base_width": "width width_per_group",
    "shortcut": "downsample shortcut_type skip projection",
    "stride_on": "stride stride_in_1x1",
    "num_classes": "classes n_classes",
    "image_size": "img_size resolution crop_size input_size",
    "normalize": "normalization normalisation mean std",
    "crop_padding": "padding pad crop random_crop",
    "flip": "hflip random_flip mirror horizontal_flip",
    "holdout": "validation val_split val_size valid_size",
    "seed": "random_seed manual_seed rng_seed",
    "protocol": "recipe",
    "iterations": "steps max_steps num_steps max_iterations max_iters n_iter niter updates",
    "batch_size": "bs batch batchsize train_batch_size minibatch",
    "bn_batch_size": "micro_batch_size microbatch micro_batch virtual_batch_size ghost_batch_size",
    "schedule": "scheduler lr_schedule lr_scheduler sched",
    "lr": "learning_rate learningrate base_lr initial_lr max_lr peak_lr eta",
    "milestones": "lr_milestones lr_steps decay_steps",
    "lr_factor": "gamma lr_gamma lr_decay",
    "warmup_iterations": "warmup warmup_steps warmup_iters",
    "peak_at": "pct_start",
    "optimizer": "optim opt optimiser solver",
    "muon_decay": "muon_weight_decay muon_wd",
    "momentum": "beta mom",
    "weight_decay": "wd l2 decay regularization",
    "precision": "amp dtype fp16 autocast mixed_precision half",
    "memory_format": "channels_last layout",
    "compile": "torch_compile jit",
    "capture": "cuda_graph cuda_graphs graph",
    "kernels": "fused operators",
    "recompute": "checkpointing gradient_checkpointing activation_checkpointing",
    "deterministic": "cudnn_deterministic determinism",
    "eval_every": "eval_interval eval_freq val_interval test_every validate_every",
    "checkpoint_every": "save_every save_interval save_freq checkpoint_interval ckpt_every",
    "tensorboard": "tb logger",
    "wandb": "weights_and_biases wb",
    "probe_at": "snapshots snapshot_at",
}  # fmt: skip
"""Setting → other names of it."""

ADVICE = {
    "epochs num_epochs n_epochs max_epochs epoch": (
        "a run is counted in 'iterations': with 50,000 images and a batch of 128, one epoch is 391"
    ),
    "warmup_epochs": "the setting is 'warmup_iterations'; an epoch of CIFAR-10 is 391",
    "augment augmentation aug data_augmentation": "the settings are 'crop_padding' and 'flip'",
    "device gpu gpus cuda cpu": "the device is an option of the command: --device",
    "data data_dir data_path root dataset_path": "the folder is an option of the command: --data",
    "out out_dir output output_dir save_dir run_dir": (
        "the folder is an option of the command: --out"
    ),
    "resume": "nothing needs to be set: the same command resumes a run",
    "workers num_workers n_workers": "CIFAR is in memory, so there are no workers to set",
    "threads num_threads": "set OMP_NUM_THREADS in the environment",
    "jobs": "'jobs' is an option of `resvar sweep`: --jobs",
    "seeds": "one run has one 'seed'; `resvar sweep --seeds 5` makes five",
    "depths variants": "these are options of `resvar sweep`: --variants, --depths",
    "for time time_limit max_time timeout duration": (
        "the time is limited by an option of `resvar sweep`: --for"
    ),
    "dropout label_smoothing mixup cutmix cutout ema clip clip_grad grad_clip": (
        "the paper has no such thing, so there is no setting for it"
    ),
}
"""Other names → what to do instead."""

LONGEST_COMPARED = 60
"""Characters of a word that are compared."""

NEAR = 0.75
"""Similarity, 0 to 1, from which a word counts as a misspelt name."""


def meant_setting(word: str, known: Collection[str]) -> str:
    """What a user means by an unknown setting: the end of a sentence, or an empty string.

    Args:
        word: the unknown name.
        known: the names of the settings that are possible here.
    """
    plain = _plain(word)
    settings = {_plain(name): name for name in known}
    others = {other: name for name in known for other in SYNONYMS.get(name, "").split()}
    if advice := next(
        (text for words, text in ADVICE.items() if plain in map(_plain, words.split())), ""
    ):
        return f": {advice}."
    meant = {**{_plain(other): name for other, name in others.items()}, **settings}
    near = difflib.get_close_matches(plain, meant, 1, NEAR)
    near = near or [name for name in settings if sorted(name) == sorted(plain)]  # two swapped
    return f"; did you mean '{meant[near[0]]}'?" if near else ""


def _plain(word: str) -> str:
    """A word without what people write differently, and not too long to be compared."""
    return re.sub(r"[-_ ]", "", word.lower())[:LONGEST_COMPARED]
