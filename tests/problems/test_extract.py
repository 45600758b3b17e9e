"""Extraction: every Gram equals one computed another way, and inputs that are one are found to be one."""

import time
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_architectures
import torch

from fwbench import notes
from fwbench.patterns import PatternError
from fwbench.problem import Problem, ProblemError
from fwbench.problems import arriving, extract, models, structure
from fwbench.problems.models import ModelError
from fwbench.problems.text import Text, TextError

TEXT = Text("prose", "".join(chr(40 + (7 * i * i + i // 3) % 80) for i in range(700)))

# Which layers of a block read one tensor, by the architecture's definition
SHARED = {
    "gpt2": [{"c_attn"}, {"attn.c_proj"}, {"c_fc"}, {"mlp.c_proj"}],
    "opt": [{"q_proj", "k_proj", "v_proj"}, {"out_proj"}, {"fc1"}, {"fc2"}],
    "gpt_neox": [{"query_key_value"}, {"dense"}, {"dense_h_to_4h"}, {"dense_4h_to_h"}],
    "llama": [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}],
    "phi": [{"q_proj", "k_proj", "v_proj", "fc1"}, {"dense"}, {"fc2"}],
}
SHARED |= dict.fromkeys(("qwen2", "gemma"), SHARED["llama"])

# The input of a block's first layers from the residual stream, as the architecture defines it
FIRST = {
    "gpt2": ("c_attn", lambda block: block.ln_1),
    "opt": ("k_proj", lambda block: block.self_attn_layer_norm),
    "gpt_neox": ("query_key_value", lambda block: block.input_layernorm),
    "phi": ("fc1", lambda block: block.input_layernorm),
}
FIRST |= dict.fromkeys(("llama", "qwen2", "gemma"), ("v_proj", lambda block: block.input_layernorm))


def batches(count: int = 5, length: int = 32, per_batch: int = 2) -> list[torch.Tensor]:
    ids = torch.randint(3, tiny.VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))
    return list(ids.split(per_batch))


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_gram_of_the_residual_stream(family):
    model, ids = tiny.model(family), torch.cat(batches())
    name, norm = FIRST[family]
    with torch.no_grad():
        streams = model.network(input_ids=ids, output_hidden_states=True).hidden_states
    layers = extract.named_layers(model)
    found = extract.grams(model.network, layers, batches())
    for number, block in enumerate(structure.find_blocks(model.network)):
        X = norm(block)(streams[number]).reshape(ids.numel(), -1).double().numpy().T
        np.testing.assert_allclose(found[f"{family}.{number:02}.{name}"], X @ X.T / ids.numel(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_every_layer_s_output_power(family):
    """Mean squared output (bias taken off) is ``diag(W G Wᵀ)``: true of every layer only if W and G belong together."""
    model, outputs = tiny.model(family), {}
    layers = extract.named_layers(model)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, args, y, name=name: outputs.setdefault(name, []).append((layer, y)))
    with torch.no_grad():
        for ids in batches():
            model.network(input_ids=ids)
    for layer in layers.values():
        layer._forward_hooks.clear()
    found = extract.grams(model.network, layers, batches())
    for name, layer in layers.items():
        y = torch.cat([out.reshape(-1, out.shape[-1]) for _, out in outputs[name]]).double()
        if layer.bias is not None:
            y = y - layer.bias.double()
        W = structure.weight_of(layer).astype(np.float64)
        np.testing.assert_allclose(((W @ found[name]) * W).sum(1), y.square().mean(0).numpy(), rtol=1e-4)


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_shared_inputs(family):
    model = tiny.model(family)
    layers = extract.named_layers(model, [1])
    found = extract.grams(model.network, layers, batches())
    groups = extract.shared_inputs(model.network, layers, batches()[0])
    assert sorted(sorted(name.split(".", 2)[2] for name in group) for group in groups) == sorted(
        map(sorted, SHARED[family])
    )
    for group in groups:
        assert len({id(found[name]) for name in group}) == 1


def test_streaming_equals_one_batch():
    model = tiny.model("llama")
    layers = extract.named_layers(model)
    many, one = (
        extract.grams(model.network, layers, batches()),
        extract.grams(model.network, layers, [torch.cat(batches())]),
    )
    for name in layers:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-5, atol=1e-8)
        assert np.array_equal(many[name], many[name].T)
        assert np.linalg.eigvalsh(many[name])[0] > -1e-14 * many[name].trace()


def test_it_repeats():
    model = tiny.model("gpt2")
    layers = extract.named_layers(model)
    first, second = (extract.grams(model.network, layers, batches()) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in layers)


def test_panels_of_a_wide_input():
    X, dense = torch.randn(2, 64, 2 * arriving.PANEL + 5, generator=torch.Generator().manual_seed(2))
    own, off = X.double().numpy(), dense.double().numpy() - X.double().numpy()
    for exact, wanted in ((True, 1e-12), (False, 1e-5)):
        item = arriving.ArrivingSum(exact)
        item.add(X[:40].reshape(2, 20, -1), dense[:40].reshape(2, 20, -1))
        item.add(X[40:], dense[40:])
        found = item.arrived()
        np.testing.assert_allclose(found.G, own.T @ own / 64, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.H, off.T @ own / 64, rtol=wanted, atol=wanted)
        if exact:
            np.testing.assert_allclose(found.E, off.T @ off / 64, rtol=1e-12, atol=1e-14)


def test_stops_after_the_last_layer_asked_for():
    model = tiny.model("llama")
    ran = []
    for number, block in enumerate(structure.find_blocks(model.network)):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    layers = {name: layer for name, layer in extract.named_layers(model, [1]).items() if "q_proj" in name}
    extract.shared_inputs(model.network, layers, batches()[0])
    ran.clear()
    inputs = extract.grams(model.network, layers, batches()[:1])
    assert list(inputs) == ["llama.01.q_proj"]
    assert ran.count(1) <= 1  # once, in the look at who shares what
    assert ran.count(0) == 2
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_problems_and_their_provenance():
    model, seen = tiny.model("llama"), []
    found = list(
        extract.extract(
            model, TEXT, [0, 2], tokens=100, length=32, progress=lambda *args: seen.append(args), pattern="2:4"
        )
    )
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert [problem.name for problem in found] == [f"llama.{block:02}.{name}" for block in (0, 2) for name in names]
    shapes = {problem.name: problem.shape for problem in found}
    assert shapes["llama.00.k_proj"] == (16, 32)
    assert shapes["llama.02.down_proj"] == (32, 40)
    assert found[0].meta["tokens"] == "100"
    assert found[0].meta["layer"] == "00.q_proj"
    assert TEXT.sha256 in found[0].meta["calibration"]
    assert str(found[0].pattern) == "2:4"
    assert seen[-1] == (100, 100, "llama: calibrating 14 layers")
    for problem in found:
        problem.check_psd()


def test_tokens_are_counted_exactly():
    model = tiny.model("llama")
    (problem,) = extract.extract(model, TEXT, [0], tokens=70, length=32, select=lambda name: name.endswith("q_proj"))
    ids = torch.tensor(tiny.tokenizer(TEXT.content)["input_ids"][:70])
    total = 0
    for part in ids.split(32):
        with torch.no_grad():
            X = (
                structure.find_blocks(model.network)[0]
                .input_layernorm(model.network.get_input_embeddings()(part))
                .double()
            )
        total = total + X.T @ X
    np.testing.assert_allclose(problem.G, (total / 70).numpy(), rtol=1e-6, atol=1e-9)


def test_each_sequence_begins_as_the_tokenizer_has_it():
    """A layer's Gram by a hook of its own, of sequences that are written down here."""
    model, inputs = tiny.model("llama"), []

    class Opening:
        def __call__(self, content, verbose, add_special_tokens=True):
            return {"input_ids": [1] * add_special_tokens + tiny.tokenizer(content)["input_ids"]}

        def convert_ids_to_tokens(self, ids):
            return ["<s>"]

    ids = tiny.tokenizer(TEXT.content)["input_ids"]
    rows = [torch.tensor([[1, *ids[start:end]]]) for start, end in ((0, 31), (31, 62), (62, 67))]
    layer = structure.find_blocks(model.network)[2].mlp.down_proj
    handle = layer.register_forward_hook(lambda layer, args, y: inputs.append(args[0][0].double()))
    with torch.no_grad():
        for row in rows:
            model.network(input_ids=row)
    handle.remove()
    X = torch.cat(inputs).numpy()
    opened = models.Model("llama", model.network, Opening())
    chosen = extract.extract(opened, TEXT, [2], tokens=70, length=32, select=lambda name: "down_proj" in name)
    (problem,) = chosen
    assert len(X) == 70
    np.testing.assert_allclose(problem.G, X.T @ X / 70, rtol=1e-4, atol=1e-9)
    assert problem.meta["calibration"].endswith("first 70 tokens in sequences of 32, each begun with <s>")


def test_a_long_sequence_is_cut_to_what_the_model_takes():
    problem = next(extract.extract(tiny.model("llama"), TEXT, [0], tokens=600))
    assert problem.meta["tokens"] == "600"
    assert "sequences of 64" in problem.meta["calibration"]


def test_refusals():
    model = tiny.model("llama")
    with pytest.raises(ModelError, match=r"no block 3; its blocks are 0\.\.2"):
        next(extract.extract(model, TEXT, [3]))
    with pytest.raises(TextError, match="fewer than one sequence"):
        next(extract.extract(model, Text("short", "abc"), [0]))
    with pytest.raises(PatternError, match="does not divide"):
        next(extract.extract(model, TEXT, [0], pattern="3:7"))
    assert list(extract.extract(model, TEXT, select=lambda name: False)) == []
    far = models.Model("llama", model.network, lambda text, **_: {"input_ids": [3, 97] * len(text[1:])})
    with pytest.raises(ModelError, match="the tokenizer gives token 97"):
        next(extract.extract(far, TEXT, [0]))


def test_activations_that_are_not_finite():
    model = tiny.model("llama")
    with torch.no_grad():
        model.network.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ProblemError, match="not finite"):
        next(extract.extract(model, TEXT, [0], tokens=64))


NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHOSEN = {  # --layers, --skip: what of a block comes
    ("mlp", ""): NAMES[4:],
    ("", "mlp"): NAMES[:4],
    ("_proj", "q_proj|layers.[02].mlp"): [*NAMES[1:4]],
    (r"\.01\.", ""): [],
    (r"layers\.0\.self_attn", "o_proj"): NAMES[:3],
}


@pytest.mark.parametrize(("layers", "skip"), CHOSEN)
def test_layers_are_chosen_by_name_or_path(layers, skip):
    """With the Gram matrices that they have among all layers."""
    every = {p.name: p for p in extract.extract(tiny.model("llama"), TEXT, tokens=64)}
    found = list(extract.extract(tiny.model("llama"), TEXT, tokens=64, layers=layers, skip=skip))
    assert [p.name for p in found if ".00." in p.name] == [f"llama.00.{name}" for name in CHOSEN[layers, skip]]
    for problem in found:
        assert np.array_equal(problem.G, every[problem.name].G)
    assert [p.name for p in found] == [name for name in every if name in {p.name for p in found}]


def test_the_models_own_name_chooses_no_layer():
    """A folder may be named after what was left out of it; a whole name may begin with it all the same."""
    model = replace(tiny.model("llama"), label="mlp-dense")
    expected = [p.name for p in extract.extract(tiny.model("llama"), TEXT, tokens=64, skip="mlp")]
    found = [p.name for p in extract.extract(model, TEXT, tokens=64, skip="mlp")]
    assert found == [name.replace("llama", "mlp-dense") for name in expected] != []
    [one] = extract.extract(model, TEXT, tokens=64, layers=r"^mlp-dense\.00\.q_proj$")
    assert one.name == "mlp-dense.00.q_proj"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"layers": "("}, r"--layers '\(' is not a regular expression"),
        ({"skip": "["}, r"--skip '\[' is not a regular expression"),
        (
            {"layers": "lm_head"},
            r"--layers 'lm_head' finds no layer; one is llama\.00\.q_proj, in the model model\.lay",
        ),
        ({"skip": "norm"}, r"--skip 'norm' finds no layer; .* stay dense anyway"),
        ({"skip": "."}, r"--skip '\.' leaves no layer to prune"),
        ({"layers": "mlp", "skip": "_proj"}, r"--skip '_proj' leaves no layer of --layers"),
    ],
)
def test_expressions_that_choose_nothing(given, reason):
    with pytest.raises(ModelError, match=reason) as error:
        next(extract.extract(tiny.model("llama"), TEXT, tokens=64, **given))
    assert "\n" not in str(error.value)


# Families whose unused layers the refusal names, and what is left with it
UNUSED = {"mamba": ("dt_proj", 3), "bart": ("encoder_attn", 6), "gemma3n_text": ("modality_router", 13)}


@pytest.mark.parametrize("family", UNUSED)
def test_layers_that_do_not_run_once_are_left_out_as_the_refusal_says(family):
    skip, count = UNUSED[family]
    model = tiny.wrap(family, tiny_architectures.network(family), tiny.tokenizer)
    with pytest.raises(ModelError, match=f"forward pass.*; --skip '{skip}' leaves such layers out$"):
        next(extract.extract(model, TEXT, tokens=64))
    assert len(list(extract.extract(model, TEXT, [1], tokens=64, skip=skip))) == count


def test_one_weight_in_two_blocks():
    """Zamba's blocks share their attention: also where only one of them is asked for."""
    model = tiny.wrap("zamba", tiny_architectures.network("zamba"), tiny.tokenizer)
    for blocks in (None, [1]):
        with pytest.raises(ModelError, match=r"zamba\.01\.q_proj runs 2 times .*; --skip 'shared_transf' leaves"):
            next(extract.extract(model, TEXT, blocks, tokens=64))
    assert len(list(extract.extract(model, TEXT, tokens=64, skip="shared_transf"))) == 10


def test_what_is_left_out_is_said_before_the_work():
    said, model = [], tiny.wrap("opt", tiny.network("opt"), tiny.tokenizer)
    with notes.heard(said.append):
        next(extract.extract(model, TEXT, [0], tokens=64, progress=lambda *at: said.append(at)))
    assert said[0] == (
        "opt: left out, besides embeddings and head: 2 weights that text runs through, "
        "the first is model.decoder.project_in.weight"
    )
    said = []
    with notes.heard(said.append):
        next(extract.extract(tiny.model("llama"), TEXT, [0], tokens=64))
    assert said == []


def test_a_layer_that_runs_twice():
    model = tiny.model("llama")
    blocks = structure.find_blocks(model.network)
    blocks[1].mlp = blocks[0].mlp
    with pytest.raises(ModelError, match="runs 2 times"):
        next(extract.extract(model, TEXT, [0], tokens=64))


@pytest.mark.slow
def test_real_model():
    """A layer of SmolLM2, and the text's token count (docs/mathematics.md, "Figures of the prototype")."""
    from fwbench.problems.text import load_text

    model, text = models.load_model("smollm2"), load_text("lee")
    assert len(model.tokenizer(text.content, verbose=False)["input_ids"]) == 75680
    found = {p.name: p for p in extract.extract(model, text, [7], tokens=2048)}
    assert len(found) == 7
    assert found["smollm2.07.gate_proj"].shape == (1536, 576)
    assert np.array_equal(found["smollm2.07.gate_proj"].G, found["smollm2.07.up_proj"].G)
    assert np.array_equal(found["smollm2.07.q_proj"].G, found["smollm2.07.v_proj"].G)
    for problem in found.values():
        problem.check_psd()


@pytest.mark.parametrize("length", [2, 3, 5, 8])
def test_a_text_that_repeats_itself_gives_problems_that_are_taken(length):
    """Gram matrices of few ranks have eigenvalues of rounding, also below 0."""
    ids = torch.arange(3, 3 + length).repeat(16, 512 // length // 2)
    model = tiny.model("llama")
    layers = extract.named_layers(model)
    for name, G in extract.grams(model.network, layers, list(ids.split(4))).items():
        Problem(name, layers[name].weight.detach().numpy(), G, "0.5").check_psd()


@pytest.mark.slow
def test_cost():
    """At most 1.6 times the bare forward pass and the bare float32 products, in processor time of one thread."""
    from fwbench.problems.text import load_text, sequences

    model = models.load_model("smollm2")
    ids = extract.batch(sequences(model.tokenizer, load_text("lee"), 4096))
    layers = extract.named_layers(model, range(6))
    inputs = [torch.randn(4096, n) for n in (576, 576, 576, 1536)] * 6

    def products():
        for X in inputs:
            X.T @ X

    def forward():
        decoder = model.network.base_model
        every, decoder.layers = decoder.layers, decoder.layers[:6]
        with torch.no_grad():
            for part in ids:
                decoder(input_ids=part, use_cache=False)
        decoder.layers = every

    def seconds(work):
        start = time.process_time()
        work()
        return time.process_time() - start

    ratios = [
        seconds(lambda: extract.grams(model.network, layers, ids)) / (seconds(forward) + seconds(products))
        for _ in range(3)
    ]
    assert min(ratios) < 1.6, ratios
