"""Decoder-only transformers and language modelling: no token sees a later one, caches and masks, texts, perplexity."""

import argparse
import collections
import copy
import json
import lzma
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import DictAction
from mmengine.dataset import default_collate
from mmengine.runner import Runner
from small import LANGUAGE, REPO, WITH_TRANSFORMERS, blocks, build

import repl_mm
from repl_mm import PlanError, apply_repl, computing_layers, fold
from repl_mm.computing_layers.merged import mean_so_far
from repl_mm.config import ConfigError, example_input, read_config, set_data_root
from repl_mm.cost import WordInput, make_input, measure
from repl_mm.data_checks import DataError
from repl_mm.families import decoder
from repl_mm.language import LanguageModel, Perplexity, WikiText2, WordText
from repl_mm.reading import read_checkpoint

WITH = pytest.mark.skipif(not WITH_TRANSFORMERS, reason='needs transformers')
CLOSE = dict(rtol=1e-5, atol=1e-6)
MODES = ('fuse', 'remove', 'patch', 'linear', 'share', 'own', 'random')
WAYS = [(mode, operator) for mode in MODES for operator in decoder.OPERATORS]
WAYS = [pair for pair in WAYS if pair[0] not in ('remove', 'patch', 'linear') or pair[1] == 'mixer']
ALL = pytest.mark.parametrize(('mode', 'operator'), WAYS)
# what apply_repl serves beyond the table
ALIKE = {name: dict(LANGUAGE['llama'], type=name, head_dim=4, pad_token_id=0) for name in decoder.ALIKE}
SERVED = pytest.mark.parametrize('name', [*LANGUAGE, *ALIKE])


def network(name, head=False, **settings):
    """A stock network of the table in eval mode, every parameter drawn at random; with the head that generates."""
    import transformers

    words = (LANGUAGE | ALIKE)[name]
    cls = getattr(transformers, decoder.HEADS[words['type']] if head else words['type'])
    words = {key: value for key, value in words.items() if key not in ('_scope_', 'type')} | settings
    torch.manual_seed(0)
    model = cls(cls.config_class(**words))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


def texts(num=2, length=12, seed=1):
    return torch.randint(50, (num, length), generator=torch.Generator().manual_seed(seed))


# ---- causality ------------------------------------------------------------------------------------------------------


@WITH
@torch.no_grad()
@ALL
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
@pytest.mark.parametrize('merged', [False, True])
def test_no_token_sees_a_later_one(name, mode, operator, merged):
    """Whatever comes behind a token, what the network says of it and of those before it stays."""
    model = network(name)
    apply_repl(model, every=2, mode=mode, operator=operator)
    if merged:
        repl_mm.merge(model)
    ids = texts()
    before = model(ids)[0]
    for place in (0, 5, 11):
        other = ids.clone()
        other[:, place] = (other[:, place] + 1) % 50
        change = (model(other)[0] - before).abs().amax((0, 2))
        assert (change[:place] == 0).all() and change[place] > 0, place


@WITH
@torch.no_grad()
@SERVED
def test_no_token_sees_a_later_one_in_any_served_class(name):
    """With its head, of which the plan stays; a text goes on alike with a cache and without."""
    model = network(name, head=True)
    assert apply_repl(model, every=2).backbone == type(model).__name__
    ids = texts()
    other = ids.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 50
    assert torch.equal(model(other)[0][:, :7], model(ids)[0][:, :7])
    words = dict(max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(ids, use_cache=True, **words), model.generate(ids, use_cache=False, **words))


def test_means_are_those_of_the_tokens_that_are_seen():
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    wanted = torch.stack([x[:, : i + 1].mean(1) for i in range(7)], 1)
    torch.testing.assert_close(mean_so_far(x, 7), wanted)
    torch.testing.assert_close(mean_so_far(x, 2), wanted[:, 5:])
    sees = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7)
    torch.testing.assert_close(mean_so_far(x, 7, sees), wanted)
    added = torch.zeros(2, 1, 7, 7, dtype=torch.float64).masked_fill(~sees, torch.finfo(torch.float64).min)
    torch.testing.assert_close(mean_so_far(x, 7, added), wanted)
    assert not mean_so_far(x, 7, torch.zeros_like(sees)).any()
    half = mean_so_far(x.bfloat16().expand(2, 7, 3).repeat(1, 500, 1), 3500)
    torch.testing.assert_close(half[:, -1].double(), x.mean(1), rtol=2e-2, atol=2e-2)  # summed up precisely


def test_the_mean_takes_time_and_memory_as_the_tokens():
    """No matrix of tokens by tokens: 2 ** 17 tokens would need one of 64 GiB."""
    x = torch.randn(1, 2**17, 1)
    torch.testing.assert_close(mean_so_far(x, 1)[:, 0], x.mean(1), rtol=1e-3, atol=1e-4)


# ---- operators against the stock modules ----------------------------------------------------------------------------


@WITH
@torch.no_grad()
@SERVED
def test_borrowed_weights_are_the_branches_of_a_stock_layer(name):
    """All hidden units of one layer are its MLP, and value and projection its attention if it attends to all alike."""
    model = network(name)
    block = blocks(model)[0, 1]
    channels = model.config.hidden_size
    seen = {}
    handle = block.register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
    saved = copy.deepcopy(model.state_dict())

    def branch():
        model(texts(length=5))  # within Mistral's window
        return seen['x'], seen['out'] - seen['x']

    def bias(role):
        found = decoder.part(block, role).bias
        return 0 if found is None else found

    def borrowed(role):
        return decoder.weights(block, role, channels)[0]

    def affine(x, weight):
        return x @ weight[:, :-1].T + weight[:, -1]

    layer = decoder.build(plan_of(model, operator='mixer'), block, (block, block))
    for parameter in decoder.part(block, 'proj').parameters():
        parameter.zero_()
    x, out = branch()
    y, hidden = layer.norm(x), affine(layer.norm(x), borrowed('fc1'))
    activation = decoder.part(block, 'activation')
    gated = 'gate' in decoder.names(block)
    hidden = activation(affine(y, borrowed('gate'))) * hidden if gated else activation(hidden)
    torch.testing.assert_close(out, hidden @ borrowed('fc2').T + bias('fc2'), **CLOSE)

    model.load_state_dict(saved)
    for parameter in decoder.part(block, 'fc2').parameters():
        parameter.zero_()
    pay_equal_attention(block)
    x, out = branch()
    mixed = affine(mean_so_far(layer.norm(x), 5), borrowed('value')) @ borrowed('proj').T + bias('proj')
    torch.testing.assert_close(out, mixed, **CLOSE)
    handle.remove()


def plan_of(model, **replace):
    """The plan that would be applied to a model."""
    return apply_repl(copy.deepcopy(model), every=2, **replace)


def pay_equal_attention(block):
    """Make the queries zero."""
    attention = decoder.attention(block)
    if hasattr(attention, 'c_attn'):
        width = attention.c_attn.weight.shape[0]
        attention.c_attn.weight[:, :width] = 0
        attention.c_attn.bias[:width] = 0
    else:
        for parameter in attention.q_proj.parameters():
            parameter.zero_()


@WITH
@torch.no_grad()
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_a_layer_starts_near_the_network_without_the_block(name):
    ids, stock = texts(), network(name)
    outputs = {}
    for way in ('remove', 'mixer', 'mlp', 'full'):
        model = copy.deepcopy(stock)
        apply_repl(model, every=2, **(dict(mode='remove') if way == 'remove' else dict(operator=way)))
        outputs[way] = model(ids)[0]
    span = (stock(ids)[0] - outputs['remove']).norm()
    for way in ('mixer', 'mlp', 'full'):
        assert 0 < (outputs[way] - outputs['remove']).norm() < 0.5 * span


# ---- masks and caches -----------------------------------------------------------------------------------------------


@WITH
@torch.no_grad()
@ALL
@pytest.mark.parametrize('attention', ['sdpa', 'eager'])
def test_padding_in_front_of_a_text_or_behind_it_changes_nothing(mode, operator, attention):
    for name in ('gpt2', 'llama'):
        # eager Llama itself gives NaN in double precision: the lowest double is no single
        model = network(name).to(torch.float32 if attention == 'eager' else torch.float64)
        model.set_attn_implementation(attention)
        apply_repl(model, every=2, mode=mode, operator=operator)
        ids, noise = texts(), texts(length=3, seed=2)
        wanted = model(ids)[0]
        for left in (True, False):
            padded = torch.cat([noise, ids] if left else [ids, noise], 1)
            mask = torch.cat([torch.zeros_like(noise), torch.ones_like(ids)][:: 1 if left else -1], 1)
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            found = model(padded, attention_mask=mask, position_ids=positions)[0]
            torch.testing.assert_close(found[:, 3:] if left else found[:, :-3], wanted, rtol=1e-4, atol=1e-5)


@WITH
@torch.no_grad()
def test_two_texts_in_a_row_do_not_see_each_other():
    """transformers takes positions that begin again for another text."""
    model = network('llama')
    apply_repl(model, every=2)
    one, two = texts(1, 6), texts(1, 9, seed=2)
    positions = torch.cat([torch.arange(6), torch.arange(9)])[None]
    found = model(torch.cat([one, two], 1), position_ids=positions, use_cache=False)[0]
    torch.testing.assert_close(found, torch.cat([model(one)[0], model(two)[0]], 1))


@WITH
@torch.no_grad()
@ALL
@pytest.mark.parametrize('name', ['gpt2', 'llama', 'mistral'])
def test_a_text_goes_on_alike_with_a_cache_and_without(name, mode, operator):
    """Greedy, by beams, and in a batch of texts of two lengths; Mistral sees 5 tokens."""
    model = network(name, head=True, max_position_embeddings=32)
    apply_repl(model, every=2, mode=mode, operator=operator)
    ids = texts(length=6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    for words in (dict(), dict(num_beams=2), dict(attention_mask=mask)):
        words = dict(dict(max_new_tokens=4, do_sample=False, pad_token_id=0), **words)
        assert torch.equal(model.generate(ids, use_cache=True, **words), model.generate(ids, use_cache=False, **words))


@WITH
@torch.no_grad()
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_a_merged_and_a_folded_network_use_caches_too(name):
    words = dict(max_new_tokens=4, do_sample=False, pad_token_id=0)
    for how in (fold, repl_mm.merge):
        model = network(name, head=True)
        apply_repl(model, every=2)
        wanted = model.generate(texts(), use_cache=False, **words)
        how(model)
        assert torch.equal(model.generate(texts(), **words), wanted)
        assert torch.equal(model.generate(texts(), cache_implementation='static', **words), wanted)


@WITH
@torch.no_grad()
def test_a_mask_that_says_nothing_of_tokens_is_refused_in_one_line():
    model = network('gpt2')
    apply_repl(model, every=2)
    layer = next(layer for _, layer in computing_layers(model))
    with pytest.raises(
        ValueError, match=r"'mixer' cannot read an attention mask .*'sdpa' or 'eager'.*'mlp'"
    ) as raised:
        layer(torch.randn(1, 4, 16).double(), attention_mask=torch.ones(1, 4))
    assert '\n' not in str(raised.value)


# ---- training -------------------------------------------------------------------------------------------------------


@WITH
@pytest.mark.parametrize('operator', decoder.OPERATORS)
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_the_checkpoints_of_transformers_give_the_same_gradients(name, operator):
    found = []
    for checkpoints in (False, True):
        model = network(name)
        apply_repl(model, every=2, operator=operator)
        model.train()
        if checkpoints:
            model.activation_checkpointing_enable()
        model(texts())[0].square().mean().backward()  # with a cache, which transformers leaves out then
        found.append({key: parameter.grad for key, parameter in model.named_parameters()})
    assert all(grad is not None for grad in found[0].values())
    torch.testing.assert_close(found[1], found[0])
    model.activation_checkpointing_disable()
    assert not any(getattr(layer, 'gradient_checkpointing', False) for _, layer in computing_layers(model))


# ---- what is refused ------------------------------------------------------------------------------------------------


@WITH
@pytest.mark.parametrize(
    ('name', 'settings', 'words'),
    [
        ('gpt2', dict(add_cross_attention=True), r'h\.0 \(GPT2Block\) has no self-attention alone'),
        (
            'qwen2',
            dict(layer_types=['full_attention', 'sliding_attention'] * 3, sliding_window=4),
            r"layer_types=\['full_attention', 'sliding_attention'\]; expected one kind",
        ),
    ],
)
def test_networks_of_another_make_are_refused(name, settings, words):
    with pytest.raises(PlanError, match=words) as raised:
        apply_repl(network(name, **settings))
    assert '\n' not in str(raised.value)


WRONG = {
    'unknown setting': (dict(n_embdd=8), ['GPT2Model.n_embdd=8', 'unknown setting', 'n_embd']),
    'a string': (dict(n_embd='8'), ['GPT2Model', 'n_embd', "'8'", 'int']),
    'heads that do not divide': (dict(n_head=3), ['divisible by num_heads', '3']),
    'first block': (dict(replace=dict(slots=[(0, 0)])), ['(0, 0)', 'no kept block precedes it']),
    'an operator of others': (dict(replace=dict(operator='conv')), ["'conv'", "'mixer', 'mlp', 'full'"]),
}


@WITH
@pytest.mark.parametrize('case', WRONG)
def test_wrong_settings_of_a_network_end_in_one_line(case):
    settings, words = WRONG[case]
    with pytest.raises((ConfigError, PlanError)) as raised:
        build(LANGUAGE['gpt2'], type='RepLGPT2Model', **settings)
    message = str(raised.value)
    assert '\n' not in message and all(word in message for word in words), message


def test_without_transformers_a_type_says_what_to_install():
    code = (
        "import sys\nsys.modules['transformers'] = None\nimport repl_mm, repl_mm.language\n"
        "from mmengine.registry import MODELS\nMODELS.build(dict(type='repl_mm.RepLGPT2Model'))"
    )
    env = dict(os.environ, PYTHONPATH=str(REPO))
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "type='GPT2Model' needs transformers" in last and "pip install 'repl_mm[language]'" in last, done.stderr


def test_nothing_of_ours_imports_transformers_beforehand():
    """mmengine itself does, wherever it is installed: so the source is looked at."""
    found = [path for path in (REPO / 'repl_mm').rglob('*.py') if 'import transformers' in path.read_text()]
    assert [path.name for path in found] == ['backbones.py']
    assert '\n        import transformers\n' in found[0].read_text()  # within a function


# ---- texts ----------------------------------------------------------------------------------------------------------

LINES = [' = A title = ', '', ' the cat sat on the <unk> ', ' the dog sat ']


def write_texts(folder, packed=False):
    """A text of 16 different words; validation and test hold words of the training split."""
    for name, lines in (('train', LINES * 6), ('valid', LINES[1:] * 2), ('test', LINES[2:] * 4)):
        content = '\n'.join(lines + ['']).encode()
        file = Path(folder, f'wiki.{name}.tokens' + ('.xz' if packed else ''))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lzma.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize('packed', [False, True])
def test_words_are_numbered_as_they_appear_and_lines_end(packed, tmp_path):
    data = WordText(write_texts(tmp_path, packed), length=4)
    assert data.words == ('=', 'A', 'title', '<eos>', 'the', 'cat', 'sat', 'on', '<unk>', 'dog')
    assert [data.words[i] for i in data.text[:14]] == [
        '=',
        'A',
        'title',
        '=',
        '<eos>',
        '<eos>',
        'the',
        'cat',
        'sat',
        'on',
        'the',
        '<unk>',
        '<eos>',
        'the',
    ]
    valid = WordText(tmp_path, 'valid', length=4)
    assert valid.words == data.words
    assert [valid.words[i] for i in valid.text[:4]] == ['<eos>', 'the', 'cat', 'sat']


@pytest.mark.parametrize(('length', 'stride'), [(4, 4), (4, 1), (4, 3), (7, 2), (100, 100), (101, 7), (5, None)])
def test_every_word_but_the_first_is_predicted_once_from_as_many_as_promised(length, stride, tmp_path):
    data = WordText(write_texts(tmp_path), length=length, stride=stride)
    predicted = []
    for index in range(len(data)):
        sample = data[index]
        assert len(sample['inputs']) == len(sample['labels']) == length
        start = min(index * data.stride, len(data.text) - 1 - length)
        assert torch.equal(sample['inputs'], data.text[start : start + length])
        for place in (sample['labels'] >= 0).nonzero().flatten().tolist():
            assert sample['labels'][place] == data.text[start + place + 1]
            assert index == 0 or place + 1 > length - data.stride
            predicted.append(start + place + 1)
    assert predicted == list(range(1, len(data.text)))
    with pytest.raises(IndexError):
        data[len(data)]


BROKEN = {
    'missing': ('wiki.valid.tokens', None, ["wiki.valid.tokens' not found", "nor 'wiki.valid.tokens.xz'"]),
    'no training split': ('wiki.train.tokens', None, ["wiki.train.tokens' not found"]),
    'empty': ('wiki.valid.tokens', b'', ['is empty', 'lines of words']),
    'no text': ('wiki.valid.tokens', b'\xff\xfe\x00', ['is cut off or no text']),
    'other words': ('wiki.valid.tokens', b'the zebra\n', ["the word 'zebra'", 'not in the training split']),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_file_that_is_missing_or_another_ends_in_one_line(case, tmp_path):
    name, content, words = BROKEN[case]
    write_texts(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        WordText(tmp_path, 'valid', length=4)
    message = str(raised.value)
    assert '\n' not in message and all(word in message for word in words), message


@pytest.mark.parametrize('keep', [0.3, 0.9])
def test_a_packed_file_that_was_cut_off_ends_in_one_line(keep, tmp_path):
    write_texts(tmp_path, packed=True)
    file = tmp_path / 'wiki.valid.tokens.xz'
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.raises(DataError, match='is cut off or no text'):
        WordText(tmp_path, 'valid', length=4)


def test_wikitext_2_knows_how_long_it_is(tmp_path):
    with pytest.raises(DataError, match='has 102 words, that of WikiText2 has 2088628: it was cut off, or is another'):
        WikiText2(write_texts(tmp_path))
    with pytest.raises(DataError, match='10 words in the training split, expected 33278'):
        WordText(tmp_path, vocab_size=33278)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(split='val'), "WordText.split='val' is not valid: expected one of 'train', 'valid', 'test'"),
        (dict(length=0), 'WordText.length=0 is not valid: expected an integer of at least 1'),
        (dict(length=4.0), 'WordText.length=4.0'),
        (dict(length=4, stride=5), r'WordText.stride=5 is not valid: expected an integer of 1..4'),
        (dict(tokens=-1), 'WordText.tokens=-1'),
        (dict(length=200), "WordText.length=200 is not valid for 102 words of split 'train': expected 101 at most"),
    ],
)
def test_wrong_settings_of_a_text(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        WordText(write_texts(tmp_path), **settings)


# ---- perplexity -----------------------------------------------------------------------------------------------------


def unigram(train, text):
    """Perplexity of a text by the frequencies of words in another one, counted here."""
    counts = collections.Counter(train.tolist())
    total = sum(counts.values())
    nats = -math.fsum(math.log(counts[word] / total) for word in text[1:].tolist())
    return math.exp(nats / (len(text) - 1))


def unigram_model(train, words):
    """A language model that says the same of every word: its frequency in the training split."""
    backbone = dict(LANGUAGE['gpt2'], vocab_size=words, n_layer=1, n_positions=512)
    model = LanguageModel({key: value for key, value in backbone.items() if key != '_scope_'}, tie_weights=False)
    norm = model.backbone.ln_f
    counts = torch.bincount(train, minlength=words).double()
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.zero_()[0] = 1
        model.head.weight.zero_()[:, 0] = (counts / counts.sum()).log()
    return model.eval()


def perplexity(model, data, batch=4):
    metric = Perplexity()
    with torch.no_grad():
        for start in range(0, len(data), batch):
            samples = default_collate([data[i] for i in range(start, min(start + batch, len(data)))])
            metric.process(samples, model(**samples, mode='predict'))
    return metric.compute_metrics(metric.results)


@WITH
@pytest.mark.parametrize('stride', [1, 3, 8])
def test_the_perplexity_of_frequencies_is_counted_independently(stride, tmp_path):
    """Known answer: it does not depend on windows either."""
    train, valid = (WordText(write_texts(tmp_path), split, length=8, stride=stride) for split in ('train', 'valid'))
    found = perplexity(unigram_model(train.text, len(train.words)), valid)
    assert found['perplexity'] == pytest.approx(unigram(train.text, valid.text), rel=1e-5)
    assert found['nats'] == pytest.approx(math.log(found['perplexity']))


@WITH
@pytest.mark.real_data
def test_wikitext_2_has_its_words_and_a_unigram_model_its_perplexity(shared_data):
    """The harness on the first 2,000 words of validation; on the whole split by counting."""
    folder = shared_data / 'wikitext2'
    train = WikiText2(folder, vocab_size=33278)  # the reader checks how long the splits are
    whole, test = WikiText2(folder, 'valid'), WikiText2(folder, 'test')
    few = WikiText2(folder, 'valid', length=128, tokens=2001)
    found = perplexity(unigram_model(train.text, 33278), few)['perplexity']
    # float32: the sum over 33,278 words is good to 4 digits
    assert found == pytest.approx(unigram(train.text, few.text), rel=1e-3)
    print({name: unigram(train.text, data.text) for name, data in (('valid', whole), ('test', test))})


@WITH
def test_a_loss_is_that_of_the_labels_and_texts_may_not_be_longer_than_positions():
    torch.manual_seed(0)
    settings = {key: value for key, value in LANGUAGE['gpt2'].items() if key != '_scope_'}
    model = LanguageModel(dict(settings, type='RepLGPT2Model'))
    inputs = texts(2, 9)
    labels = inputs.clone()
    labels[0, :4] = -100
    logits = model(inputs)
    assert logits.shape == (2, 9, 50)
    nats = -logits.log_softmax(-1).gather(2, inputs[..., None])[..., 0][labels >= 0]
    torch.testing.assert_close(model(inputs, labels, 'loss')['loss'], nats.mean())
    found = model(inputs, labels, 'predict')
    torch.testing.assert_close(sum(sample['nats'] for sample in found), nats.sum())
    assert [int(sample['words']) for sample in found] == [5, 9]
    torch.testing.assert_close(logits, model.backbone(inputs)[0] @ model.backbone.wte.weight.T)  # tied
    with pytest.raises(ConfigError, match='the texts have 40 words, model.backbone has 32 positions'):
        model(texts(1, 40))
    with pytest.raises(ValueError, match="mode='train' is not valid"):
        model(inputs, mode='train')
    with pytest.raises(ConfigError, match='expected one of words'):
        LanguageModel(dict(type='CifarResNet', depth=20))


# ---- costs and tools ------------------------------------------------------------------------------------------------


@WITH
def test_a_step_is_counted_on_words():
    stock, repl = build(LANGUAGE['gpt2']), build(LANGUAGE['gpt2'], type='RepLGPT2Model', replace={})
    inputs = WordInput((16,), 3, 50)
    assert inputs.make().shape == (3, 16) and inputs.make().max() < 50 and str(inputs) == '16 words, batch 3'
    before, after = measure(stock, inputs), measure(repl, inputs)
    layers = 6 * 12 * 16 * 16
    attention = 6 * 2 * 16 * 16  # queries with keys, and with values, of every token
    assert before.forward_flops == 2 * 3 * 16 * layers + 2 * 3 * 16 * attention
    assert after.flops < before.flops and after.params < before.params
    with pytest.raises(ValueError, match='no length of a text'):
        WordInput((0,))
    with pytest.raises(RuntimeError, match='GPT2Model takes words, not images'):
        measure(repl)
    assert make_input((8, 8), 1).shape == (8, 8) and make_input([8], 1) == WordInput((8,), 1)


def test_configs_say_how_many_words():
    cfg = read_config(str(REPO / 'configs' / 'language' / 'gpt2-t_repl_wikitext2.py'))
    assert example_input(cfg) == WordInput((128,), 2)
    assert example_input(cfg, (64,), 5) == WordInput((64,), 5)


def tool(name, *args, cwd):
    command = [sys.executable, str(REPO / 'tools' / f'{name}.py'), *map(str, args)]
    env = dict(os.environ, PYTHONPATH=str(REPO), PYTHONWARNINGS='ignore')
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


TINY = ['model.backbone.vocab_size=10', 'model.backbone.n_embd=16', 'model.backbone.n_head=2']
for split in ('train', 'val', 'test'):
    words = ('type=WordText', 'vocab_size=10', 'length=8', 'stride=8')
    TINY += [f'{split}_dataloader.dataset.{word}' for word in words] + [f'{split}_dataloader.batch_size=4']
TINY += ['default_hooks.logger.interval=1', 'param_scheduler.0.end=0.5']


def tiny_config(folder):
    """The shipped config of a tiny GPT-2 with RepL and the options ``TINY``, on texts that are written to a folder."""
    cfg = read_config(str(REPO / 'configs' / 'language' / 'gpt2-t_repl_wikitext2.py'))
    set_data_root(cfg, str(write_texts(folder)))
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction)
    cfg.merge_from_dict(parser.parse_args(['--options', *TINY]).options)
    return cfg


@WITH
@pytest.mark.slow
def test_the_tools_train_test_and_compare_language_models(tmp_path):
    write_texts(tmp_path / 'data' / 'wikitext2')
    config = REPO / 'configs' / 'language' / 'gpt2-t_repl_wikitext2.py'
    options = ['--cfg-options', *TINY, 'train_cfg.max_epochs=1']
    arms = ['--arms', 'e2e', 'fuse', 'remove', '--seeds', 0, '--out', 'cmp']
    done = tool('compare', config, *arms, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((tmp_path / 'cmp' / 'compare.json').read_text()).values()
    assert found['metric'] == 'lm/perplexity' and found['shape'] == [8] and found['batch'] == 4
    assert 'lm/perplexity, lower is better' in done.stdout
    run = tmp_path / 'cmp' / config.stem / 'fuse' / 'seed_0'
    scores = found['arms']['fuse']['runs']['0']['metrics']
    assert scores['lm/perplexity'] == pytest.approx(math.exp(scores['lm/nats']), rel=1e-3)
    log = (run / 'train.log').read_text()
    assert 'RepL plan of GPT2Model: 2 of 6 blocks replaced' in log and 'Cost of the backbone, 128 words' in log

    weights = run / 'epoch_1.pth'
    valid = [*TINY, 'test_dataloader.dataset.split=valid']
    done = tool('test', config, weights, '--cfg-options', *valid, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'lm/perplexity: {scores["lm/perplexity"]:.4f}' in done.stdout + done.stderr

    done = tool('train', config, '--cfg-options', *TINY, 'train_dataloader.dataset.length=200', cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()[-1]) < 300
    assert 'length=200 is not valid for 102 words' in done.stderr.splitlines()[-1]


@WITH
@pytest.mark.slow
@pytest.mark.parametrize('repl', [False, True])
def test_a_run_gives_the_perplexity_of_a_plain_loop_around_transformers_own_model(repl, tmp_path):
    """Known answer from the library: its model, its loss and its shift of labels, on windows cut here."""
    import transformers

    cfg = tiny_config(tmp_path / 'data')
    sizes = dict(vocab_size=10, n_embd=16, n_head=2, n_layer=6, n_positions=128)
    no_noise = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)  # each would draw other numbers
    cfg.model.backbone.update(no_noise, type='RepLGPT2Model' if repl else 'GPT2Model')
    cfg.custom_hooks, cfg.param_scheduler = [], None
    cfg.train_dataloader.sampler.shuffle = False
    cfg.train_dataloader.dataset.tokens = 97  # 12 windows of 8, and the word behind the last
    cfg.val_dataloader.dataset.tokens = 17
    cfg.train_cfg.max_epochs = 2
    cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg = 0.01, None
    cfg.update(work_dir=str(tmp_path / 'run'), experiment_name=f'plain {repl}')
    runner = Runner.from_cfg(cfg)
    start = copy.deepcopy(runner.model.state_dict())
    runner.train()
    found = runner.val_loop.run()['lm/perplexity']

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **no_noise))
    if repl:
        apply_repl(model)
    start.pop('backbone.repl_plan', None)  # of the whole model below
    model.transformer.load_state_dict({key.removeprefix('backbone.'): value for key, value in start.items()})
    numbers = [WordText(tmp_path / 'data', split, length=8).text for split in ('train', 'valid')]
    train, valid = (
        torch.stack([text[at : at + 9] for at in range(0, 8 * count, 8)])
        for text, count in zip(numbers, (12, 2), strict=True)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for batch in (*train.split(4), *train.split(4)):
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        wanted = model(valid, labels=valid).loss.exp().item()
    assert found == pytest.approx(wanted, rel=1e-4)
    assert wanted < 8  # of 10 words: so much is learned that another schedule would show


@WITH
@pytest.mark.slow
@pytest.mark.parametrize('wrapper', ['OptimWrapper', 'CPUAmpOptimWrapper'])
@pytest.mark.parametrize('operator', [None, *decoder.OPERATORS])
def test_a_run_with_averaged_weights_resumes_as_if_nothing_had_happened(operator, wrapper, tmp_path):
    """None: the stock network, the control."""
    cfg = tiny_config(tmp_path / 'data')
    no_noise = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)  # a resumed run would draw other numbers
    kind = dict(replace=dict(operator=operator)) if operator else dict(type='GPT2Model')
    cfg.model.backbone.update(**no_noise, **kind)
    cfg.custom_hooks[0].shape = None
    cfg.default_hooks.ema = dict(type='EMAHook', momentum=0.1)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 2
    cfg.optim_wrapper.type = wrapper
    cfg.train_cfg.max_epochs = 2

    def train(name, **words):
        run = copy.deepcopy(cfg)
        run.update(work_dir=str(tmp_path / name), experiment_name=name, **words)
        runner = Runner.from_cfg(run)
        runner.train()
        assert runner.epoch == 2
        return read_checkpoint(tmp_path / name / 'epoch_2.pth')

    names = f'{operator} {wrapper} whole', f'{operator} {wrapper} resumed'
    whole = train(names[0])
    resumed = train(names[1], resume=True, load_from=str(tmp_path / names[0] / 'epoch_1.pth'))
    for part in ('state_dict', 'ema_state_dict'):
        torch.testing.assert_close(resumed[part], whole[part], rtol=1e-5, atol=1e-7)
    averaged, trained = (whole[part] for part in ('state_dict', 'ema_state_dict'))  # the hook swaps them
    key = 'backbone.wte.weight'  # the head is this matrix
    assert not torch.equal(averaged[key], trained[f'module.{key}'])
