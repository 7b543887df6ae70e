"""torch's own checks of an optimizer over our OptimizerInfo rows: its state, checkpoints and copies."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_rows import Fit, Row, over, plain


@over([False, True], [False, True, False], names="named named_too")
def test_state_dict_is_deterministic(row: Row, named: bool, named_too: bool) -> None:
    one, other = Fit(), Fit()
    opt = row.make(one.named(named))
    one.train(opt, 10)
    for p, q in zip(one.params, other.params, strict=True):
        q.data.copy_(p)
    twin, saved = row.make(other.named(named_too)), opt.state_dict()
    before = copy.deepcopy(saved)
    twin.load_state_dict(copy.deepcopy(saved))
    assert plain(saved) == plain(before)
    assert twin.param_groups[0].get("param_names") == (["weight", "bias"] if named or named_too else None)
    for _ in range(10):
        assert one.train(opt, 1) == other.train(twin, 1)
    assert plain(opt.state_dict()) == plain(twin.state_dict())
    twin.param_groups.extend(twin.param_groups)  # those that stand there twice are told alike
    assert plain(opt.state_dict()["param_groups"][-1]) == plain(twin.state_dict()["param_groups"][-1])


def reloaded(row: Row, change: Callable[[dict], Any]) -> tuple[Tensor, Tensor]:
    """The losses of a run that has gone on from a checkpoint that is changed, and of one from the checkpoint itself."""
    fit = Fit()
    opt = row.make(fit.params)
    fit.train(opt, 5)
    other = copy.deepcopy((fit, opt))
    saved = copy.deepcopy(opt.state_dict())
    change(saved)
    opt.load_state_dict(saved)
    return fit.train(opt, 3), other[0].train(other[1], 3)


@over(where=lambda row: not row.rises())  # a base without its maximize minimises, as torch has it
def test_loads_an_older_state_dict(row: Row) -> None:
    def change(saved: dict) -> None:
        for group in saved["param_groups"]:
            for flag in row.info.not_og_supported_flags:
                group.pop(flag, None)

    one, other = reloaded(row, change)
    assert one == other


@over([lambda x: x.item() if isinstance(x, Tensor) else x, torch.as_tensor], names="cast")
def test_loads_a_step_of_another_kind(row: Row, cast: Any) -> None:
    def change(saved: dict) -> None:
        for own in saved["state"].values():
            if "step" in own:
                own["step"] = cast(own["step"])

    one, other = reloaded(row, change)
    assert one == other


@over([True, False], names="named")
def test_save_load_equality_with_weights_only(row: Row, named: bool) -> None:
    fit = Fit()
    opt = row.make(fit.named(named))
    fit.train(opt, 3)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    assert plain(torch.load(file, weights_only=True)) == plain(opt.state_dict())


@over()
def test_state_dict_of_other_dtypes(row: Row) -> None:
    one, other = Fit(torch.float64), Fit()
    opt, twin = row.make(one.params), row.make(other.params)
    one.train(opt, 3)
    saved = opt.state_dict()
    before = copy.deepcopy(saved)
    twin.load_state_dict(saved)
    assert plain(saved) == plain(before)
    for p, q in zip(one.params, other.params, strict=True):
        assert {x.dtype for x in twin.state[q].values() if isinstance(x, Tensor) and x.dim()} <= {torch.float32}
        assert float(twin.state[q].get("step", 0)) == float(opt.state[p].get("step", 0))
    other.train(twin, 3)


def note(opt: Any) -> None:
    opt.state["test"] = 1


def noted(opt: Any, saved: dict) -> dict:
    saved["noted"] = saved["state"].pop("test", None)
    return saved


@over([False, True, True], [True, False, True, True], names="pre post")
def test_state_dict_hooks(row: Row, pre: bool, post: bool) -> None:
    fit = Fit()
    opt = row.make(fit.params)
    fit.train(opt, 1)
    if pre:
        opt.register_state_dict_pre_hook(note)
    if post:
        opt.register_state_dict_post_hook(noted)
    saved = opt.state_dict()
    assert saved["state"].get("test") == (1 if pre and not post else None)
    assert saved.get("noted") == (1 if pre and post else None)
    opt.load_state_dict(saved)
    fit.train(opt, 1)  # with what is no tensor's in the state


def lr_is_2(opt: Any, saved: dict) -> None:
    saved["param_groups"][0]["lr"] = 0.002


def lr_is_3(opt: Any, saved: dict) -> dict:
    saved = copy.deepcopy(saved)
    saved["param_groups"][0]["lr"] = 0.003
    return saved


@over()
def test_load_state_dict_hooks(row: Row) -> None:
    opt = row.make(Fit().params)
    calls: list[float] = []
    opt.register_load_state_dict_post_hook(lambda opt: calls.append(round(float(opt.param_groups[0]["lr"]), 6)))
    saved = opt.state_dict()
    opt.register_load_state_dict_pre_hook(lr_is_2)
    opt.load_state_dict(saved)
    opt.register_load_state_dict_pre_hook(lr_is_3, prepend=True)
    opt.load_state_dict(saved)
    opt.register_load_state_dict_pre_hook(lr_is_3)
    opt.load_state_dict(saved)
    assert calls == [0.002, 0.002, 0.003]


@over()
def test_load_state_dict_hooks_are_the_last_word(row: Row) -> None:
    """What a hook makes of a checkpoint is what is loaded, and what one does afterwards stays."""
    fit = Fit()
    opt = row.make(fit.params)
    fit.train(opt, 3)
    saved = copy.deepcopy(opt.state_dict())
    wrapped_up = {"inner": saved}
    twin = row.make(fit.params)
    twin.register_load_state_dict_pre_hook(lambda opt, outer: outer["inner"])
    twin.load_state_dict(wrapped_up)
    assert plain(twin.state_dict()) == plain(saved)
    twin.register_load_state_dict_post_hook(lambda opt: [own.pop("lr", None) for own in opt.state.values()])
    twin.load_state_dict(wrapped_up)
    assert not any("lr" in own for own in twin.state.values())


@over([copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], names="copied")
def test_copies_have_all_attributes(row: Row, copied: Any) -> None:
    fit = Fit()
    opt = row.make(fit.params)
    fit.train(opt, 3)
    other, twin = copied((fit, opt))
    assert {name for name in vars(opt) if name[0] != "_"} == {name for name in vars(twin) if name[0] != "_"}
    assert fit.train(opt, 3) == other.train(twin, 3)
    assert plain(opt.state_dict()) == plain(twin.state_dict())


@over()
def test_state_is_not_empty(row: Row) -> None:
    fit = Fit()
    opt = row.make(fit.params)
    fit.train(opt, 1)
    assert len(opt.state) == 2
    assert all(own for own in opt.state.values())
