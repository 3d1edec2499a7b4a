"""The pool of experts: budgets from headers, eviction, sharing, failures; and directories that were tampered with."""

from __future__ import annotations

import builtins
import copy
import json
import pickle
import shutil
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from heads.experts import files, pool
from heads.experts.expert_head import share_experts
from heads.experts.files import (
    ExpertError,
    check_pipeline,
    local_directory,
    required_package,
    weight_bytes,
    weight_files,
)
from heads.experts.pipelines import PipelineExpert
from heads.experts.pool import Expert, ExpertPool, parse_memory
from heads.generation.images import TextToImageHead
from heads.generation.sound import SoundHead
from tests.heads.generation.conftest import Saved
from tests.heads.generation.test_pictures import call, images

CPU = torch.device("cpu")


class Fake(Expert):
    """So many bytes by name; counts its loadings."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size, self.loadings = name, size, 0

    @property
    def key(self) -> Hashable:
        return self.name

    def num_bytes(self, dtype: torch.dtype) -> int:
        return self.size

    def load(self, device: torch.device, dtype: torch.dtype, progress: bool) -> Any:
        self.loadings += 1
        return nn.Linear(2, 2)


def test_the_least_recently_used_makes_room() -> None:
    experts = ExpertPool(memory=100)
    a, b, c = Fake("a", 40), Fake("b", 40), Fake("c", 40)
    for expert in (a, b, a, c, a):
        with experts.borrow(expert, CPU):
            pass
    assert list(experts.loaded) == ["c", "a"] and (a.loadings, b.loadings, c.loadings) == (1, 1, 1)
    with experts.borrow(b, CPU):
        assert list(experts.loaded) == ["a", "b"] and b.loadings == 2


def test_what_is_in_use_stays() -> None:
    experts = ExpertPool(memory=100)
    with experts.borrow(Fake("a", 60), CPU):
        with pytest.raises(ExpertError, match="all experts are in use"), experts.borrow(Fake("b", 60), CPU):
            pass
        with experts.borrow(Fake("c", 40), CPU):
            assert set(experts.loaded) == {"a", "c"}
    with pytest.raises(ExpertError, match="at most the pool's budget"), experts.borrow(Fake("d", 101), CPU):
        pass


def test_out_of_memory_sends_the_others_away_and_asks_once_more() -> None:
    experts, a, b = ExpertPool(memory=100), Fake("a", 40), Fake("b", 40)
    tried: list[list[Hashable]] = []

    def hungry(value: Any) -> str:
        tried.append(list(experts.loaded))
        if len(experts.loaded) > 1:
            raise torch.OutOfMemoryError("tried to allocate 1 GiB")
        return "done"

    assert experts.ask(a, CPU, lambda value: "there") == "there"
    assert experts.ask(b, CPU, hungry) == "done" and tried == [["a", "b"], ["b"]]

    def starving(value: Any) -> str:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        experts.ask(b, CPU, starving)


def test_an_expert_loaded_while_asking_can_take_part_in_training() -> None:
    experts = ExpertPool(memory=100)
    with torch.inference_mode(), experts.borrow(Fake("a", 1), CPU):
        pass
    with experts.borrow(Fake("a", 1), CPU) as layer:
        layer(torch.zeros(1, 2, requires_grad=True)).sum().backward()


def test_a_pool_is_shared_by_copies_and_emptied_by_pickling() -> None:
    experts = ExpertPool("1 GiB", dtype="bfloat16")
    with experts.borrow(Fake("a", 1), CPU):
        pass
    assert copy.deepcopy(experts) is experts
    other = pickle.loads(pickle.dumps(experts))
    assert other.loaded == {} and other.memory == 1024**3 and other.dtype_on(CPU) == torch.bfloat16
    assert ExpertPool().dtype_on(CPU) == torch.float32


def test_memory_in_words() -> None:
    assert [parse_memory(text) for text in ("12 GiB", "500MB", "1.5k", 7)] == [12 * 1024**3, 500 * 10**6, 1500, 7]
    with pytest.raises(ValueError, match="got 'much'"):
        parse_memory("much")
    with pytest.raises(ValueError, match="dtype"):
        ExpertPool(dtype="int8")


def test_the_default_budget_is_what_the_device_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "free_memory", lambda device: 1000)
    experts = ExpertPool()
    with experts.borrow(Fake("a", 799), CPU):
        assert experts.memory == 800
    assert pool.free_memory is not None and ExpertPool(memory=5).memory == 5


def test_heads_of_one_pool_load_a_directory_once(saved: Saved) -> None:
    directory = str(saved("StableDiffusionPipeline"))
    heads = [TextToImageHead(directory, num_steps=1), TextToImageHead(directory, num_steps=2)]
    own = ExpertPool()
    apart = TextToImageHead(directory, experts=own)
    share_experts([*heads, apart])
    assert heads[0].experts is heads[1].experts and apart.experts is own
    for head in heads:
        images(head, call("a dog"))
    assert len(heads[0].experts.loaded) == 1 and own.loaded == {}
    share_experts([*heads, apart], own, replace_own=True)
    assert heads[0].experts is own


def test_budgets_are_read_from_headers(saved: Saved) -> None:
    expert = PipelineExpert(str(saved("StableDiffusionPipeline")))
    with ExpertPool().borrow(expert, CPU) as pipeline:
        models = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        assert not any(model.training or any(p.requires_grad for p in model.parameters()) for model in models)
        numbers = sum(p.numel() for model in models for p in model.parameters())
    assert expert.num_bytes(torch.bfloat16) == 2 * numbers
    assert abs(expert.num_bytes(torch.float32) - 4 * numbers) < 1024  # buffers


@pytest.fixture
def directory(saved: Saved, tmp_path: Path) -> Path:
    """A directory of its own to spoil."""
    return Path(shutil.copytree(saved("StableDiffusionPipeline"), tmp_path / "expert"))


def _with(directory: Path, **changes: Any) -> None:
    path = directory / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _mark(directory: Path) -> str:
    """Python code that leaves a trace if it is run."""
    return f"import pathlib\npathlib.Path({str(directory / 'ran')!r}).write_text('')\n"


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def _pickled(directory: Path) -> None:
    folder = directory / "unet"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(directory / "ran")))


def _custom_component(directory: Path) -> None:
    (directory / "unet" / "diffusers.py").write_text(_mark(directory))


def _custom_pipeline(directory: Path) -> None:
    (directory / "pipeline.py").write_text(_mark(directory) + "class Mine:\n    pass\n")
    _with(directory, _class_name=["pipeline", "Mine"])


def _foreign_library(directory: Path) -> None:
    (directory / "planted.py").write_text(_mark(directory) + "class Mine:\n    pass\n")
    _with(directory, unet=["planted", "Mine"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickled, "expected weights as safetensors .pickles are refused., got .*bin"),
        (_custom_component, "brings code of its own, unet/diffusers.py"),
        (_custom_pipeline, "'_class_name': expected a pipeline of diffusers"),
        (_foreign_library, "expected a class of diffusers or transformers .* got planted.Mine"),
        (lambda d: _with(d, unet=["os", "system"]), "got os.system"),
        (lambda d: _with(d, unet=["subprocess", "Popen"]), "got subprocess.Popen"),
        (lambda d: _with(d, unet=["diffusers", "OnnxRuntimeModel"]), "got diffusers.OnnxRuntimeModel"),
        (lambda d: _with(d, unet=["transformers", "pipeline"]), "got transformers.pipeline"),
        (lambda d: _with(d, unet=["diffusers.utils", "DummyObject"]), "the names of a library and a class"),
        (
            lambda d: _with(d, **{"../unet": ["diffusers", "UNet2DConditionModel"]}),
            "the names of a library and a class",
        ),
        (lambda d: _with(d, _class_name="UNet2DConditionModel"), "'_class_name': expected a pipeline of diffusers"),
        (lambda d: (d / "model_index.json").write_text("{"), "expected JSON that names a pipeline's parts"),
        (lambda d: (d / "model_index.json").write_text("[]"), "expected a JSON object, got a list"),
        (lambda d: (d / "model_index.json").unlink(), "expected JSON that names a pipeline's parts"),
        (lambda d: shutil.rmtree(d / "vae"), "vae: expected weights as safetensors .*, got nothing"),
    ],
)
def test_a_spoiled_directory_is_refused_and_nothing_of_it_is_run(spoil: Any, message: str, directory: Path) -> None:
    spoil(directory)
    head = TextToImageHead(str(directory), num_steps=1)
    with pytest.raises(ExpertError, match=message):
        images(head, call("a dog"))
    assert not (directory / "ran").exists() and head.experts.loaded == {}


def test_weights_that_are_not_safetensors_are_refused_before_loading(directory: Path) -> None:
    (directory / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(_Bomb(directory / "ran")))
    with pytest.raises(ExpertError, match="expected safetensors, got a file that cannot be read"):
        images(TextToImageHead(str(directory)), call("a dog"))
    assert not (directory / "ran").exists()


def test_a_pipeline_of_another_kind_is_refused(saved: Saved) -> None:
    inpainting = str(saved("StableDiffusionInpaintPipeline"))
    with pytest.raises(ExpertError, match=r"got StableDiffusionInpaintPipeline that takes .'image', 'mask_image'."):
        images(TextToImageHead(inpainting), call("a dog"))
    head = SoundHead(str(saved("StableDiffusionPipeline")))
    with pytest.raises(ExpertError, match=r"takes one of .'audio_length_in_s'.* got StableDiffusionPipeline"):
        head.decode(head(None, [0], [call("a bark")]), [call("a bark")])


def test_variants_of_weights(directory: Path) -> None:
    folder = directory / "unet"
    plain = weight_files(folder)
    assert weight_files(folder, "fp16") == plain
    shutil.copy(plain[0], folder / "diffusion_pytorch_model.fp16.safetensors")
    assert [path.name for path in weight_files(folder, "fp16")] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert weight_files(folder) == plain and weight_bytes(plain, torch.float16) > 0
    assert check_pipeline(directory).models == ("text_encoder", "unet", "vae")


def test_a_repository_is_fetched_without_anything_executable(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert local_directory("someone/drawings", "main") == directory
    assert asked["name"] == "someone/drawings" and asked["revision"] == "main"
    assert not {"*.bin", "*.py", "*.pkl", "*.pt", "*"} & set(asked["allow_patterns"])

    def unreachable(name: str, **options: Any) -> str:
        raise OSError("offline\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ExpertError, match=r"neither a directory nor a repository that can be reached: offline$"):
        local_directory("someone/drawings")
    with pytest.raises(ExpertError, match="expected a directory, or a repository of the hub"):
        local_directory("no/such/folder")


def test_a_missing_extra_says_how_to_install_it(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *rest: Any) -> Any:
        if name == "diffusers":
            raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")
        return real(name, *rest)

    real = files.importlib.import_module
    monkeypatch.setattr(files.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"needs diffusers, .* pip install -e '.\[diffusion\]'"):
        images(TextToImageHead(str(saved("StableDiffusionPipeline"))), call("a dog"))
    monkeypatch.undo()
    assert required_package("json", "x") is json and builtins is not None
