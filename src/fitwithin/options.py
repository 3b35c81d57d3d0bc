"""The options of a run: for the command line (cli/options.py), the keywords of the library (request.py) and the
reference page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypedDict, get_args, get_type_hints

from fitwithin import units
from fitwithin.candidate import parse_models, parse_precisions, parse_sizes
from fitwithin.errors import UsageError
from fitwithin.machine import DeviceName
from fitwithin.recipe import DEFAULT
from fitwithin.weights.licences import parse_licences


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a run. Texts are Markdown."""

    #: What the option does, in a sentence: for ``--help`` and the reference page.
    help: str
    #: Further sentences for the reference page alone.
    more: str = ""
    #: Makes the plain value from what a user wrote; raises UsageError.
    parse: Callable[[Any], Any] = lambda value: value
    #: What holds where the option is not given, as a user would write it.
    default: Any = None
    #: Says what holds instead, where ``default`` is None.
    otherwise: str = "none"
    #: The least and the largest whole number that may be given.
    among: tuple[int, int] | None = None
    #: Whether ``fitwithin profile`` takes it: a profile alone has no time budget and no search.
    in_profile: bool = True
    #: Whether it may be given together with a plan, which fixes all others.
    with_plan: bool = False
    #: The option of the command line; by default ``--`` and the keyword, with dashes.
    flag: str = ""
    #: What the command line takes for it: set in OPTIONS.
    kind: type = str

    def read(self, value: Any) -> Any:
        """The plain value of what was given, or of the default where that is None; UsageError if it does not parse."""
        value = self.default if value is None else value
        if value is None:
            return None
        if self.among is not None and not self.among[0] <= value <= self.among[1]:
            least, most = self.among
            raise UsageError(f"{self.flag} {value} is out of range; choose a whole number from {least} to {most}")
        return self.parse(value)

    @property
    def default_text(self) -> str:
        """What holds where the option is not given, as Markdown."""
        if self.default is None:
            return self.otherwise
        return "off" if self.default is False else f"`{self.default}`"


#: What columns of a table may say.
COLUMN_ROLES = ("path", "label", "split", "group", "time")


def parse_columns(value: str | Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The column for each role, from ``role=column`` with commas between, or a mapping; UsageError if it is neither."""
    pairs = value.items() if isinstance(value, Mapping) else [each.partition("=")[::2] for each in value.split(",")]
    found = {role.strip(): column.strip() for role, column in pairs}
    wrong = [role for role in found if role not in COLUMN_ROLES]
    if wrong or (isinstance(value, str) and value.count("=") < len(found)):
        raise UsageError(
            f"--columns {value!r} does not say which column is which; write path=NAME,label=NAME, for any of "
            f"{', '.join(COLUMN_ROLES)}"
        )
    return tuple(found.items())


class Limits(TypedDict, total=False):
    """The keywords of :func:`fitwithin.run`, as text or as plain values: bytes, seconds (also ``inference``), pixels.

    ``memory`` and one of ``time`` and ``gpu_time`` are needed. The text of each option says what it does.
    """

    # fmt: off
    memory: Annotated[str | int, Option(
        help="Cap on device memory, such as `6GiB`; a run needs one.",
        parse=units.size, otherwise="required", with_plan=True)]
    time: Annotated[str | float, Option(
        help="Wall-clock budget from process start, such as `3h`.",
        parse=units.duration, in_profile=False, with_plan=True)]
    gpu_time: Annotated[str | float, Option(
        help="Budget of GPU seconds, such as `9h`: the time that GPUs are held, summed over them.",
        more="With `--data-parallel 2` or `--gpus 2`, `9h` are 4.5 h by the clock.",
        parse=units.duration, in_profile=False, with_plan=True)]
    inference: Annotated[str | float, Option(
        help="Budget per image of the ensemble, such as `2ms`.",
        more="It is measured on the run's device, in passes of as many images as the report says. Backbones that are "
        "expected to take longer are left out.",
        parse=units.duration, in_profile=False, with_plan=True)]
    throughput: Annotated[str | float, Option(
        help="Least images per second of the ensemble, such as `2000/s`.",
        more="Another way to say `--inference 0.5ms`; of both the tighter one holds.",
        parse=units.rate, in_profile=False, with_plan=True)]
    inference_memory: Annotated[str | int, Option(
        help="Most memory of the ensemble at work, such as `500MB`.",
        more="It counts the weights and what a pass computes, without the libraries and what kernels need to work. "
        "The model is used with as many images a pass as fit.",
        parse=units.size, in_profile=False, with_plan=True)]
    models: Annotated[str | Sequence[str], Option(
        help="Backbones: timm names or patterns, separated by commas.",
        more="`paper` names the ten of the paper. What is not given is chosen from some sixty backbones that we have "
        "measured, for the data, the machine and the time.",
        parse=parse_models, otherwise="chosen; under `paper` the paper's ten")]
    precision: Annotated[str | Sequence[str], Option(
        help="Precisions to try: `amp`, `amp-bf16`, `fp32`, `tf32`, separated by commas.",
        more="`amp` is float16 on CUDA and bfloat16 on the CPU. `fp32` is PyTorch's default: convolutions may use "
        "TF32. With `tf32` matrix products may use it too.",
        parse=parse_precisions, otherwise="the recipe's")]
    sizes: Annotated[str | Sequence[int], Option(
        help="Training sizes in pixels, 8 to 1024.",
        more="What is not given is chosen too, never above the shorter side of most images.",
        parse=parse_sizes, otherwise="chosen; under `paper` 160 and 224")]
    test_sizes: Annotated[str | Sequence[int], Option(
        help="Evaluation sizes in pixels.",
        more="Each size, plain and mirrored, is a view. The recipe's are `--sizes`, and under `fast` also 1.2 times "
        "those.",
        parse=parse_sizes, otherwise="the recipe's")]
    scope: Annotated[str, Option(
        help="What the time limits: the `total` run, or each `candidate`'s training and evaluation.",
        default="total", in_profile=False)]
    recipe: Annotated[str, Option(
        help="How to train: `fast`, `paper`, `upright`, `wide`, or a TOML file.",
        default=DEFAULT)]
    balance: Annotated[str, Option(
        help="What classes with few images get: `auto`, `none`, `weights` or `sampling`.",
        more="`auto` weighs the model's answers for them as far as validation images show that it pays, once they are "
        "three times fewer. `weights` weighs their images in the loss, `sampling` draws all classes equally often.",
        default="auto", in_profile=False)]
    fit: Annotated[str, Option(
        help="What a square input shows of an elongated picture: `auto`, `crop`, `pad` or `squash`.",
        more="`crop` shows its centre, `pad` all of it with borders, `squash` all of it with its sides scaled to be "
        "alike. `auto` compares them on the validation images where the median picture is 1.7 times as long as wide "
        "or more and pretrained weights are at hand; else it crops.",
        default="auto", in_profile=False)]
    init: Annotated[str, Option(
        help="Where weights come from: `auto`, `random` or `weights`.",
        more="`auto` starts from pretrained weights where there are any, their licence is permitted, and they promise "
        "more than a random start. `weights` always does. A run never downloads any: `fitwithin weights pull` does.",
        default="auto", in_profile=False)]
    weights: Annotated[str, Option(
        help="A folder of pretrained weights: files `<timm name>.safetensors` or `.pth`, or timm's folders.",
        more="`--init` decides whether the run starts from them. It is an error if none can be used. Beside the folder "
        "count those that were pulled, installed packages of weights, and the Hugging Face cache.",
        in_profile=False)]
    licences: Annotated[str | Sequence[str], Option(
        help="Licences that pretrained weights may have, separated by commas.",
        more="`permissive` stands for apache-2.0, mit, bsd-3-clause and cc-by-4.0.",
        parse=parse_licences, default="permissive", in_profile=False)]
    device: Annotated[str | DeviceName, Option(
        help="Device: `auto`, `cpu`, `cuda` or `cuda:N`.",
        parse=DeviceName.parse, default="auto", with_plan=True)]
    accounting: Annotated[str, Option(
        help="What `--memory` counts: the whole `process`, as the driver does, or PyTorch's `allocator`, as the "
        "challenge did.",
        default="process", flag="--memory-accounting")]
    seed: Annotated[int, Option(
        help="Seed of split, weights and augmentation.",
        default=0, among=(0, 2**31 - 1))]
    split: Annotated[str, Option(
        help="How a split that the data do not state comes about: `auto`, `grouped` or `order`.",
        more="`auto` draws it from the seed, class by class. `grouped` does too, and keeps near twins (mirrored, "
        "cropped, compressed) on one side; looking for them takes some 2 ms an image. With `order` the last images "
        "of each class go to val and test: by a column of times, else by name. Either way a group of a table (`group`, "
        "`patient`, `subject`) is never on both sides.",
        default="auto")]
    columns: Annotated[str | Mapping[str, str], Option(
        help="Which columns of a table are which, such as `path=photo,label=species`.",
        more="For `path`, `label`, `split`, `group` and `time`; without one they are known by their names. `split=` "
        "leaves a column aside.",
        parse=parse_columns, otherwise="known by their names")]
    strict: Annotated[bool, Option(
        help="Stop at images that cannot be read.",
        default=False)]
    exclude: Annotated[str | os.PathLike[str], Option(
        help="A list of images to leave out, as `fitwithin inspect` writes it.",
        more="A table with the columns `path` and `exclude`; images whose `exclude` says yes are left out. No file is "
        "deleted. The fingerprint in the receipt is that of the rest.")]
    jobs: Annotated[int, Option(
        help="How many candidates are profiled side by side on one device, each process under the cap.",
        more="Only for a card that nobody else uses: together they hold that many times the cap. Fewer if less memory "
        "is free.",
        default=1, among=(1, 32))]
    data_parallel: Annotated[int, Option(
        help="Train each candidate on this many GPUs at once, consecutive ones starting at `--device`.",
        more="16 at most; on the CPU it is the number of processes. `--memory` caps each process on its own device; "
        "the batch of a plan is that of all processes together.",
        default=1, among=(1, 16))]
    gpus: Annotated[int, Option(
        help="Use this many GPUs at once, consecutive ones starting at `--device`, for candidates side by side.",
        more="64 at most, all of one kind. `--gpus` / `--data-parallel` candidates run side by side, each on its own "
        "GPUs. Under halving as many candidates have a final training, and the best is the result. On the CPU "
        "they share the cores; on a Ray cluster that many jobs run at once. Not together with `--jobs`.",
        otherwise="`--data-parallel`", among=(1, 64))]
    search: Annotated[str, Option(
        help="How candidates share the time: `halving`, `optuna` or `exhaustive`.",
        more="`exhaustive`: the fastest candidates, as many as get `min_epochs` in equal shares. `halving`: all get a "
        "little time, the best quarter four times as much time for steps, and so on; the winner has a final "
        "training. `optuna`: the same for more candidates than there is time for; Optuna proposes who enters from "
        "the results so far (extra `[optuna]`).",
        otherwise="`halving`; under `--scope candidate` `exhaustive`", in_profile=False)]
    min_gain: Annotated[float, Option(
        help="For halving: leave time unspent that gains fewer points of accuracy per GPU-hour.",
        more="The final training is no longer than the length at which one more GPU-hour still gains this many points, "
        "by the line through the candidate's last two trials. The report says how much time is unspent.",
        in_profile=False)]
    emulate_device_memory: Annotated[str | int, Option(
        help="Hold the rest of the GPU's memory, so that libraries see a card of this size.",
        more="At least `--memory`.",
        parse=units.size, otherwise="off")]
    engine: Annotated[str, Option(
        help="Where jobs run: `local`, on this machine; `ray`, as tasks of a Ray cluster.",
        more="Each task holds one whole GPU (on the CPU one core). Needs `pip install 'fitwithin[ray]'`. With `--plan` "
        "the plan's, unless given. With `ray`, `--device` is `auto`, `cpu` or `cuda`; `--jobs` above 1 and "
        "`--emulate-device-memory` are refused.",
        default="local", with_plan=True)]
    ray_address: Annotated[str, Option(
        help="With `--engine ray`: the cluster's head, `HOST:PORT`, or `auto` for the cluster of this machine.",
        more="Without one, a cluster of this machine alone is started for the command.",
        otherwise="`RAY_ADDRESS`, else none", with_plan=True)]
    # fmt: on


def _named(name: str, hint: Any) -> Option:
    """The option of that keyword, from its annotation: bool, int and float come from the command line as such."""
    option: Option
    kind, option = get_args(hint)
    flag = option.flag or "--" + name.replace("_", "-")
    return replace(option, flag=flag, kind=kind if kind in (bool, int, float) else str)


#: Every option by its keyword, in the order in which the command line and the reference page have them.
OPTIONS: dict[str, Option] = {
    name: _named(name, hint) for name, hint in get_type_hints(Limits, include_extras=True).items()
}
