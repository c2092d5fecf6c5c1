"""An encoder of many files, and edits of it: what the tests of identity stand on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ENCODER = '''"""An encoder."""
import importlib
import importlib.util
import json
import sys
from pathlib import Path

import torch

import beside_idt
from nested_idt.deep.scale import SCALE

HERE = Path(__file__).resolve().parent
GLOBAL = 1.0
dynamic = importlib.import_module("_".join(["dynamic", "idt"]))
_spec = importlib.util.spec_from_file_location("by_path", HERE / "by_path_idt.py")
by_path = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(by_path)  # and never in sys.modules


class MyEncoder(torch.nn.Module):
    """Frames of 20 ms, projected."""

    sampling_rate, output_dim, hop_size_in_ms = 16_000, 4, 20

    def __init__(self, gain: float = 1.0, config: str = "", checkpoint: str = "", offset: float = 0.0):
        super().__init__()
        sys.path.append(str(HERE.parent / "shared"))
        from sibling_idt.late import LATE  # a package elsewhere, imported here alone

        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(4, 320, generator=generator) / 18)
        self.register_buffer("shift", torch.full((4,), 0.5))
        self.register_buffer("unsaved", torch.ones(4), persistent=False)
        if checkpoint:
            self.load_state_dict(torch.load(checkpoint))
        self.plain = float((HERE / "numbers.txt").read_text())
        gain *= json.loads(Path(config).read_text())["gain"] if config else 1.0
        self.factor = gain * GLOBAL * SCALE * beside_idt.FACTOR * dynamic.FACTOR * by_path.FACTOR * LATE
        self.offset = offset

    def forward(self, audio):
        from lazy_idt import BIAS

        steps = torch.nn.functional.pad(audio, (0, -audio.shape[1] % 320)).unflatten(1, (-1, 320))
        return (steps @ self.weight.T * self.factor + self.shift + BIAS + self.plain + self.offset) * self.unsaved
'''

FILES = {
    "enc/my_encoder.py": ENCODER,
    "enc/beside_idt.py": '"""Beside."""\nFACTOR = 1.0  # as it is\n',
    "enc/nested_idt/__init__.py": "",
    "enc/nested_idt/deep/__init__.py": "",
    "enc/nested_idt/deep/scale.py": "from ..base import ONE\n\nSCALE = ONE\n",
    "enc/nested_idt/base.py": "ONE = 1.0\n",
    "enc/dynamic_idt.py": "FACTOR = 1.0\n",
    "enc/by_path_idt.py": "FACTOR = 1.0\n",
    "enc/lazy_idt.py": "BIAS = 0.0\n",
    "shared/sibling_idt/__init__.py": "",
    "shared/sibling_idt/late.py": "LATE = 1.0\n",
    "enc/numbers.txt": "0.0\n",
    "config.json": json.dumps({"gain": 1.0}),
}


@dataclass
class Project:
    """The files in a folder, and how the encoder is loaded from there."""

    folder: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    link: str = ""

    @property
    def spec(self) -> str:
        return self.link or str(self.folder / "enc/my_encoder.py")

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def made(folder: Path) -> Project:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    state = {"weight": torch.linspace(-0.1, 0.1, 4 * 320).view(4, 320), "shift": torch.zeros(4)}
    torch.save(state, folder / "weights.pt")
    return Project(folder, arguments={"config": str(folder / "config.json"), "checkpoint": str(folder / "weights.pt")})


def _in(file: str, old: str, new: str) -> Callable[[Project], None]:
    return lambda project: project.replace(file, old, new)


def _in_checkpoint(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Project], None]:
    def edit(project: Project) -> None:
        path = project.folder / "weights.pt"
        state = torch.load(path)
        change(state)
        torch.save(state, path)

    return edit


def _one_bit(state: dict[str, torch.Tensor]) -> None:
    state["weight"][0, 0] = torch.nextafter(state["weight"][0, 0], torch.tensor(1.0))


def _with_arguments(**arguments: Any) -> Callable[[Project], None]:
    def edit(project: Project) -> None:
        project.arguments = {**project.arguments, **arguments}

    return edit


def _moved(project: Project) -> None:
    target = project.folder.with_name(f"{project.folder.name}-moved")
    shutil.rmtree(target, ignore_errors=True)
    project.folder.rename(target)
    project.folder = target
    project.arguments = {"config": str(target / "config.json"), "checkpoint": str(target / "weights.pt")}


def _linked(project: Project) -> None:
    link = project.folder / "another_name.py"
    link.symlink_to(project.folder / "enc/my_encoder.py")
    project.link = f"{link}:MyEncoder"


def _carriage_returns(project: Project) -> None:
    for path in project.folder.rglob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def _copied_checkpoint(project: Project) -> None:
    shutil.copy(project.folder / "weights.pt", project.folder / "copy.pt")
    project.arguments = {**project.arguments, "checkpoint": str(project.folder / "copy.pt")}


def _spelled_otherwise(project: Project) -> None:
    project.arguments = {
        **project.arguments,
        "checkpoint": os.path.relpath(project.folder / "enc" / ".." / "weights.pt"),
    }
    project.link = f"{os.path.relpath(project.folder)}/enc/../enc/./my_encoder.py"


def _in_another_order(project: Project) -> None:
    project.arguments = dict(reversed(project.arguments.items()))


# edits after which it is another encoder, and what a user reads of why
ANOTHER: Mapping[str, tuple[Callable[[Project], None], str]] = {
    "nested package": (_in("enc/nested_idt/deep/scale.py", "= ONE", "= ONE * 2"), "code"),
    "relative import of a nested package": (_in("enc/nested_idt/base.py", "1.0", "2.0"), "code"),
    "package's own __init__": (_in("enc/nested_idt/__init__.py", "", "X = 1\n"), "code"),
    "sibling package imported inside __init__": (_in("shared/sibling_idt/late.py", "1.0", "2.0"), "code"),
    "dynamic import": (_in("enc/dynamic_idt.py", "1.0", "2.0"), "code"),
    "importlib": (_in("enc/by_path_idt.py", "1.0", "2.0"), "code"),
    "file beside it": (_in("enc/beside_idt.py", "1.0", "2.0"), "code"),
    "import inside forward": (_in("enc/lazy_idt.py", "0.0", "2.0"), "code"),
    "global constant": (_in("enc/my_encoder.py", "GLOBAL = 1.0", "GLOBAL = 2.0"), "code"),
    "default argument": (_in("enc/my_encoder.py", "offset: float = 0.0", "offset: float = 0.5"), "code"),
    "statement that changes no number": (_in("enc/my_encoder.py", "= offset", "= 1 * offset"), "code"),
    "argument": (_with_arguments(gain=2.0), "arguments (gain)"),
    "default argument, said": (_with_arguments(gain=1.0), "arguments (gain)"),
    "file of an argument": (_in("config.json", "1.0", "2.0"), "arguments (config)"),
    "one bit of one weight": (_in_checkpoint(_one_bit), "weights"),
    "buffer": (_in_checkpoint(lambda state: state["shift"].add_(1.0)), "weights"),
    "buffer that no checkpoint has": (_in("enc/my_encoder.py", "torch.ones(4)", "torch.ones(4) * 2"), "weights"),
    "dtype": (_in("enc/my_encoder.py", "torch.full((4,), 0.5)", "torch.full((4,), 0.5).double().half()"), "weights"),
}  # fmt: skip

# edits after which it is the same encoder
SAME: Mapping[str, Callable[[Project], None]] = {
    "comment": _in("enc/my_encoder.py", "GLOBAL = 1.0", "GLOBAL = 1.0  # as ever"),
    "comment beside it": _in("enc/beside_idt.py", "# as it is", "# as it was"),
    "docstring": _in("enc/my_encoder.py", "Frames of 20 ms, projected.", "A projection of frames."),
    "docstring beside it": _in("enc/beside_idt.py", '"""Beside."""\n', ""),
    "formatting": _in("enc/my_encoder.py", "GLOBAL = 1.0", "GLOBAL   =  (\n    1.0\n)\n\n"),
    "path": _moved,
    "symlink": _linked,
    "line endings": _carriage_returns,
    "copied checkpoint": _copied_checkpoint,
    "spelling of paths": _spelled_otherwise,
    "order of arguments": _in_another_order,
    "file that it does not import": lambda project: project.folder.joinpath("enc/other_idt.py").write_text("X = 1\n"),
}
