"""Programs are counted as they run: by hand on small texts, and against the compiler's own counts where it has any."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.plan import hlo
from zsjax.plan.program import read_program
from zsjax.plan.targets import CHIPS

TEXT = """HloModule jit_f, is_scheduled=true

%put (p0: bf16[64,2,512,128], p1: bf16[64,2,1,128], p2: s32[64]) -> bf16[64,2,512,128] {
  %p0 = bf16[64,2,512,128]{3,2,1,0} parameter(0)
  %p2 = s32[64]{0} parameter(2)
  %at = s32[64,1]{1,0} bitcast(%p2)
  %p1 = bf16[64,2,1,128]{3,2,1,0} parameter(1)
  ROOT %s = bf16[64,2,512,128]{3,2,1,0} scatter(%p0, %at, %p1), update_window_dims={1,2,3}, to_apply=%second
}

%taken (q0: f32[1000,16], q1: s32[64]) -> f32[64,16] {
  %q0 = f32[1000,16]{1,0} parameter(0)
  %q1 = s32[64]{0} parameter(1)
  ROOT %g = f32[64,16]{1,0} gather(%q0, %q1), offset_dims={1}, slice_sizes={1,16}
}

%widen (w: bf16[32,64]) -> f32[32,64] {
  %w = bf16[32,64]{1,0} parameter(0)
  ROOT %c = f32[32,64]{1,0} convert(%w)
}

%body (t: (s32[], bf16[64,2,512,128])) -> (s32[], bf16[64,2,512,128]) {
  %t = (s32[], /*index=1*/bf16[64,2,512,128]{3,2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %cache = bf16[64,2,512,128]{3,2,1,0} get-tuple-element(%t), index=1
  %new = bf16[64,2,1,128]{3,2,1,0} constant({...})
  %slots = s32[64]{0} constant({...})
  %update = bf16[64,2,512,128]{3,2,1,0} fusion(%cache, %new, %slots), kind=kInput, calls=%put, METADATA
  ROOT %out = (s32[], bf16[64,2,512,128]{3,2,1,0}) tuple(%i, %update)
}

ENTRY %main (a: f32[1000,16], b: bf16[32,64], c: bf16[64,8], d: (s32[], bf16[64,2,512,128])) -> f32[64,16] {
  %a = f32[1000,16]{1,0} parameter(0)
  %b = bf16[32,64]{1,0} parameter(1)
  %c = bf16[64,8]{1,0} parameter(2)
  %d = (s32[], bf16[64,2,512,128]{3,2,1,0}) parameter(3)
  %ids = s32[64]{0} constant({...})
  %wide = f32[32,64]{1,0} fusion(%b), kind=kLoop, calls=%widen
  %product = (bf16[32,8]{1,0}, s8[1024]{0}) custom-call(%b, %c), custom_call_target="__cublas$gemm", backend_config=GEMM
  %loop = (s32[], bf16[64,2,512,128]{3,2,1,0}) while(%d), condition=%cond, body=%body, TURNS
  %whole = bf16[256,64]{1,0} all-gather(%b), replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %rows = f32[64,16]{1,0} fusion(%a, %ids), kind=kLoop, calls=%taken
}
"""
for short, long in {  # what would make lines too long
        "METADATA": 'metadata={op_name="jit(f)/write/while/body/scatter"}',
        "GEMM": '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
        "TURNS": 'backend_config={"known_trip_count":{"n":"7"}}'}.items():
    TEXT = TEXT.replace(short, long)


def kernels(text=TEXT):
    return {kernel.name: kernel for phase in read_program(text).phases for kernel in phase.kernels}


def test_text_is_read_with_tuples_comments_and_attributes():
    module = hlo.read(TEXT)
    assert module.entry == "main" and set(module.computations) == {"put", "taken", "widen", "body", "main"}
    update = module.computations["body"]["update"]
    assert update.operands == ("cache", "new", "slots") and update.called == ["put"]
    assert module.computations["main"]["d"].shapes == (hlo.Shape("s32", ()), hlo.Shape("bf16", (64, 2, 512, 128)))
    assert module.computations["body"].root.name == "out"
    sizes = {"s4": 5, "pred": 10, "f8e4m3fn": 10, "bf16": 20, "u32": 40, "token": 0}
    assert {dtype: hlo.Shape(dtype, (10,)).bytes for dtype in sizes} == sizes
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.read("module {}")


def test_updates_in_place_and_looked_up_rows_count_what_they_touch():
    found = kernels()
    new, slots = 64 * 2 * 128 * 2, 64 * 4
    assert (found["update"].reads, found["update"].writes) == (new + slots, new)
    assert (found["rows"].reads, found["rows"].writes) == (64 * 16 * 4 + 64 * 4, 64 * 16 * 4)


def test_products_copies_loops_and_exchanges():
    program, found = read_program(TEXT), kernels()
    outside, (loop,) = program.phases[0], program.loops
    assert outside.flops == {"bf16": 2.0 * 32 * 8 * 64}
    assert (loop.turns, loop.scope, [kernel.name for kernel in loop.kernels]) == (7, "write", ["update"])
    assert [(kernel.name, kernel.widened) for kernel in outside.copies(1)] == [("wide", True)] and not loop.copies(1)
    assert outside.exchanged == {"all-gather": 256 * 64 * 2} and found["whole"].devices == 8
    chip = dataclasses.replace(CHIPS["h100"], bandwidth=1e9, flops=1e12, link=1e8, reached=0.5, launch=0.25)
    assert found["update"].seconds(chip) == pytest.approx(0.25 + (2 * 64 * 2 * 128 * 2 + 256) / 0.5e9)
    assert found["whole"].seconds(chip) == pytest.approx(0.25 + 256 * 64 * 2 * 7 / 8 / 1e8)
    assert loop.seconds(chip) == found["update"].seconds(chip)


def test_flash_decoding_reads_the_rows_it_is_asked_for_and_multiplies():
    arrays = dict(last="s32[4,32]", q="bf16[4,2,32,128]", k="bf16[64,2,512,128]", v="bf16[64,2,512,128]", rows="s32[4]")
    given = "\n".join(f"  %{name} = {shape} parameter({i})" for i, (name, shape) in enumerate(arrays.items()))
    call = f"  ROOT %o = bf16[4,2,32,128] custom-call({', '.join('%' + name for name in arrays)}), TARGET, METADATA"
    text = f"HloModule jit_f\n\nENTRY %main (last: s32[4,32]) -> bf16[4,2,32,128] {{\n{given}\n{call}\n}}\n"
    text = text.replace("TARGET", 'custom_call_target="__gpu$xla.gpu.triton"').replace(
        "METADATA", 'metadata={op_name="jit(f)/while/body/flash_decode/pallas_call"}')
    (kernel,), q, cache = kernels(text).values(), 4 * 2 * 32 * 128, 4 * 2 * 512 * 128
    assert (kernel.reads, kernel.writes) == (4 * 4 + 4 * 32 * 4 + 2 * q + 2 * 2 * cache, 2 * q)
    assert kernel.flops == (("bf16", 4.0 * q * 512),)
    assert kernels(text.replace("flash_decode", "other"))["o"].reads > 16 * 2 * 2 * cache


def test_a_compiled_loop_has_the_compilers_products_and_the_bytes_of_its_arrays():
    L, D, F = 3, 64, 256

    def f(x, up, down):
        def turn(_, x):
            for i in range(L):
                x = x + jnp.tanh(x @ up[i]) @ down[i]
            return x

        with jax.named_scope("turns"):
            return jax.lax.fori_loop(0, 5, turn, x)

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    shapes = array(8, D), [array(D, F)] * L, [array(F, D)] * L
    program = read_program(jax.jit(f).lower(*shapes).compile().as_text())
    (loop,) = program.loops
    assert loop.turns == 5 and "turns" in loop.scope
    assert loop.flops == {"f32": 2.0 * 2 * 8 * D * F * L}
    weights = 2 * L * D * F * 4
    assert weights <= loop.bytes <= 1.5 * weights


def test_gradients_have_the_flops_that_the_compiler_counts():
    def f(w, x):
        return (jnp.tanh(x @ w) @ w.T).sum()

    w, x = np.ones((64, 128), np.float32), np.ones((32, 64), np.float32)
    compiled = jax.jit(jax.grad(f)).lower(w, x).compile()
    (phase,) = read_program(compiled.as_text()).phases
    assert sum(phase.flops.values()) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.02)


def test_the_floor_reads_what_is_outside_once_and_leaves_results_once():
    outside, (loop,) = read_program(TEXT).phases[0], read_program(TEXT).loops
    new = 64 * 2 * 128 * 2
    # The loop: constants are read, the new keys are written. They are not in memory twice.
    assert loop.floor.bytes == 2 * new + 64 * 4 and loop.floor.flops == ()
    # A kernel that reads what the loop updates in place reads the cache, which is from outside.
    read = TEXT.replace("  ROOT %out =", "  %seen = bf16[64,2,512,128]{3,2,1,0} negate(%update)\n  ROOT %out =")
    (loop,) = read_program(read).loops
    assert loop.floor.bytes == 64 * 2 * 512 * 128 * 2 + 2 * new + 64 * 4
    # b is read by three kernels, c by one, of a the 64 rows that are looked up; these rows are the result. What `wide` and
    # `product` write, nobody outside reads.
    b, c, rows, ids = 32 * 64 * 2, 64 * 8 * 2, 64 * 16 * 4, 64 * 4
    assert outside.floor.bytes == b + c + 2 * rows + ids
    assert outside.floor.flops == (("bf16", 2.0 * 32 * 8 * 64),)
    chip = dataclasses.replace(CHIPS["h100"], bandwidth=1e9, flops=1e12, reached=0.5, launch=0.25)
    assert outside.floor_seconds(chip) == pytest.approx(outside.floor.bytes / 1e9)
    assert outside.floor_seconds(chip) < outside.seconds(chip)


def test_what_remat_computes_again_is_not_in_the_floor():
    def f(remat):
        def layer(w, x):
            return jnp.tanh(jnp.tanh(x @ w) @ w.T)

        def loss(w, x):
            return (jax.checkpoint(layer) if remat else layer)(w, x).sum()

        shapes = jax.ShapeDtypeStruct((64, 128), jnp.float32), jax.ShapeDtypeStruct((32, 64), jnp.float32)
        (phase,) = read_program(jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().as_text()).phases
        return phase.flops["f32"], dict(phase.floor.flops)["f32"]

    (kept, kept_floor), (again, floor) = f(remat=False), f(remat=True)
    # Two products forward, four backward; of remat's, one or both are computed again, and XLA may merge what is equal.
    assert kept == kept_floor == 6 * 2.0 * 32 * 64 * 128
    assert floor < again and kept - (again - floor) <= floor <= kept


TPU = """HloModule jit_f, is_scheduled=true

%start (p: bf16[256,4096]) -> (bf16[256,4096], bf16[1024,4096], u32[]) {
  %p = bf16[256,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %g = bf16[1024,4096]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=6, replica_groups=GROUPS, dimensions={0}
  ROOT %c = (bf16[256,4096]{1,0:T(8,128)(2,1)S(1)}, bf16[1024,4096]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) custom-call(%g)
}

%done (p: bf16[256,4096]) -> bf16[1024,4096] {
  %p = bf16[256,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %g = bf16[1024,4096]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=6, replica_groups=GROUPS, dimensions={0}
  ROOT %c = bf16[1024,4096]{1,0:T(8,128)(2,1)S(1)} custom-call(%p, %g), custom_call_target="AsyncCollectiveDone"
}

%multiply (x: bf16[8,1024], w: bf16[1024,4096]) -> bf16[8,4096] {
  %x = bf16[8,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[1024,4096]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %v = bf16[8,4096]{1,0:T(8,128)(2,1)} convolution(%x, %w), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[8,1024], w: bf16[256,4096], q: bf16[4,16,32], k: bf16[4,64,32]) -> bf16[8,4096] {
  %x = bf16[8,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[256,4096]{1,0:T(8,128)(2,1)} parameter(1)
  %q = bf16[4,16,32]{2,1,0:T(8,128)(2,1)} parameter(2)
  %k = bf16[4,64,32]{2,1,0:T(8,128)(2,1)} parameter(3)
  %scores = bf16[4,16,64]{2,1,0:T(8,128)(2,1)} convolution(%q, %k), WINDOW, dim_labels=0bf_0oi->0bf
  %fetch = (bf16[256,4096]{1,0:T(8,128)(2,1)S(1)}, bf16[256,4096]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%w)
  %here = bf16[256,4096]{1,0:T(8,128)(2,1)S(1)} copy-done(%fetch)
  %begin = (bf16[256,4096]{1,0:T(8,128)S(1)}, bf16[1024,4096]{1,0:T(8,128)S(1)}) fusion(%here), kind=kCustom, calls=%start
  %whole = bf16[1024,4096]{1,0:T(8,128)(2,1)S(1)} fusion(%here), kind=kCustom, calls=%done
  ROOT %y = bf16[8,4096]{1,0:T(8,128)(2,1)} fusion(%x, %whole), kind=kOutput, calls=%multiply
}
""".replace("GROUPS", "mesh['axis_0'=4,'axis_1'=2] {'axis_0'}").replace(
    "WINDOW", "window={size=4 stride=3 pad=0_0 lhs_dilate=4}")


def test_a_tpus_products_exchanges_and_memory_on_the_chip():
    found = kernels(TPU)
    (phase,) = read_program(TPU).phases
    assert dict(found["y"].flops) == {"bf16": 2.0 * 8 * 1024 * 4096}
    assert dict(found["scores"].flops) == {"bf16": 2.0 * 4 * 16 * 64 * 32}  # four products, one of each batch
    shard, x, y = 256 * 4096 * 2, 8 * 1024 * 2, 8 * 4096 * 2
    assert (found["fetch"].reads, found["fetch"].writes, found["fetch"].copied) == (shard, 0, 0)
    assert (found["y"].reads, found["y"].writes) == (x, y) and found["whole"].bytes == 0
    # The exchange that one kernel begins and another ends is one.
    assert phase.exchanged == {"all-gather": 4 * shard} and found["begin"].devices == 4
    assert found["begin"].exchanged == 4 * shard and found["whole"].exchanged == 0
    assert not phase.copies(1)
