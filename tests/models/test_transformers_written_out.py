import math

import pytest
import torch
from test_models import inputs, network
from test_transformers import DIT, JIT

from fmdiff.models.layers import Sinusoid


def reference(net, x, t, y, patch, heads, jit):
    """Either network, token by token and head by head."""
    w = {key: value.double() for key, value in net.state_dict().items()}
    B, C, H, W = x.shape
    rows, columns = H // patch, W // patch
    depth = len(net.blocks)

    def linear(name, h):
        return torch.einsum("...i,oi->...o", h, w[f"{name}.weight"]) + w.get(f"{name}.bias", 0)

    def silu(h):
        return h / (1 + torch.exp(-h))

    def norm(name, h):
        if jit:
            return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(q, places, d):
        quarter = d // 4
        f = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        angles = torch.stack(
            [torch.cat([0 * f, 0 * f] if p is None else [p[0] * f, p[1] * f]) for p in places]
        )
        z = torch.complex(q[..., : d // 2], q[..., d // 2 :]) * torch.exp(1j * angles)
        return torch.cat([z.real, z.imag], dim=-1)

    time = linear("conditioning.time.3", silu(linear("conditioning.time.1", Sinusoid(256)(t))))
    label = w["conditioning.label.weight"][y]
    condition = silu(time + label)
    places = [(i, j) for i in range(rows) for j in range(columns)]
    cut = [
        x[:, :, patch * i : patch * (i + 1), patch * j : patch * (j + 1)].reshape(B, -1)
        for i, j in places
    ]
    h = torch.stack(cut, dim=1)
    h = linear("first", linear("press", h) if jit else h) + net.places
    for b in range(depth):
        name = f"blocks.{b}"
        if jit and b == net.start:
            h = torch.cat([label[:, None] + w["label_places"], h], dim=1)
            places = [None] * len(w["label_places"]) + places
        m = [part[:, None] for part in linear(f"{name}.modulation", condition).chunk(6, dim=-1)]
        inside = norm(f"{name}.norm_attention", h) * (1 + m[1]) + m[0]
        q, k, v = linear(f"{name}.attention.qkv", inside).chunk(3, dim=-1)
        d = q.shape[-1] // heads
        mixed = []
        for part in range(heads):
            q_h, k_h, v_h = (p[..., d * part : d * (part + 1)] for p in (q, k, v))
            if jit:
                q_h = turned(norm(f"{name}.attention.norm_q", q_h), places, d)
                k_h = turned(norm(f"{name}.attention.norm_k", k_h), places, d)
            scores = torch.einsum("bid,bjd->bij", q_h, k_h) / math.sqrt(d)
            mixed.append(torch.einsum("bij,bjd->bid", scores.softmax(dim=-1), v_h))
        h = h + m[2] * linear(f"{name}.attention.out", torch.cat(mixed, dim=-1))
        inside = norm(f"{name}.norm_mlp", h) * (1 + m[4]) + m[3]
        if jit:
            a, gate = linear(f"{name}.mlp.first", inside).chunk(2, dim=-1)
            h = h + m[5] * linear(f"{name}.mlp.second", silu(a) * gate)
        else:
            a = linear(f"{name}.mlp.0", inside)
            a = a / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
            h = h + m[5] * linear(f"{name}.mlp.2", a)
    shift, scale = linear("final.modulation", condition).chunk(2, dim=-1)
    h = h[:, -rows * columns :]
    h = linear("final.last", norm("final.norm", h) * (1 + scale[:, None]) + shift[:, None])
    out = torch.zeros_like(x)
    for n in range(rows * columns):
        i, j = patch * (n // columns), patch * (n % columns)
        out[:, :, i : i + patch, j : j + patch] = h[:, n].reshape(B, C, patch, patch)
    return out


@pytest.mark.parametrize(
    ("name", "shape", "overrides"),
    [
        ("dit_s", (2, 6, 8), {**DIT, "patch": 2}),
        ("dit_b", (1, 9, 9), {**DIT, "patch": 3}),
        ("jit_mnist", (2, 6, 8), {**JIT, "patch": 2}),
        ("jit_b", (3, 8, 16), {**JIT, "patch": 4, "start": 0}),
    ],
)
def test_forward_is_the_written_out_network(name, shape, overrides):
    net = network(name, shape, 3, True, **overrides, time_frequency=None).double()
    x, t, y = inputs(shape, 3)
    x, t = x.double(), t.double()
    patch, heads, jit = overrides["patch"], overrides["heads"], name.startswith("jit")
    with torch.no_grad():
        expected = reference(net, x, t, y, patch, heads, jit)
        found = net(x, t, y)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_dit_is_the_one_of_diffusers():
    from diffusers import DiTTransformer2DModel

    net = network("dit_s", (4, 8, 8), 10, True, **DIT, time_frequency=None)
    other = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    ).eval()
    parts = {}

    def copy(theirs, ours):
        for kind in ("weight", "bias"):
            parts[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]

    state = net.state_dict()
    parts["pos_embed.proj.weight"] = state["first.weight"].view(48, 4, 2, 2)
    parts["pos_embed.proj.bias"] = state["first.bias"]
    copy("proj_out_1", "final.modulation")
    pixels = torch.arange(16).view(4, 4).T.flatten()  # channels last within a patch
    for kind in ("weight", "bias"):
        parts[f"proj_out_2.{kind}"] = state[f"final.last.{kind}"][pixels]
    for i, block in enumerate(other.transformer_blocks):
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # diffusers' 1 is not the paper's
        theirs, ours = f"transformer_blocks.{i}", f"blocks.{i}"
        embed = f"{theirs}.norm1.emb"
        copy(f"{embed}.timestep_embedder.linear_1", "conditioning.time.1")
        copy(f"{embed}.timestep_embedder.linear_2", "conditioning.time.3")
        table = state["conditioning.label.weight"]
        parts[f"{embed}.class_embedder.embedding_table.weight"] = table
        copy(f"{theirs}.norm1.linear", f"{ours}.modulation")
        for n, name in enumerate("qkv"):
            for kind in ("weight", "bias"):
                chunk = state[f"{ours}.attention.qkv.{kind}"].chunk(3)[n]
                parts[f"{theirs}.attn1.to_{name}.{kind}"] = chunk
        copy(f"{theirs}.attn1.to_out.0", f"{ours}.attention.out")
        copy(f"{theirs}.ff.net.0.proj", f"{ours}.mlp.0")
        copy(f"{theirs}.ff.net.2", f"{ours}.mlp.2")
    other.load_state_dict(parts, strict=True)
    x, t, y = inputs((4, 8, 8), 10)
    with torch.no_grad():
        expected = other(x, timestep=t, class_labels=y).sample
        assert expected.std() > 0.05
        torch.testing.assert_close(net(x, t, y), expected, rtol=1e-4, atol=1e-5)
