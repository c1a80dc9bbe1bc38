"""The pictures: what they show is named truly, coloured as documented, and drawn the same twice."""

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from torch import nn

from stages.common import artifacts, attacks, figures, images
from stages.common.images import ImageSet

NAMES = ["bird", "cat", "deer"]
SHAPES = [(1, 8, 8), (3, 32, 32)]


class Reader(nn.Module):
    """Takes an image for the class whose third of the columns is the brightest. Easily fooled."""

    classes = NAMES

    def forward(self, x):
        return torch.stack([part.mean((1, 2, 3)) for part in x.tensor_split(3, dim=3)], 1) * 10


def image_set(shape, labels):
    """Images that `Reader` gets right, each one a little different."""
    channels, height, width = shape
    pixels = torch.full((len(labels), channels, height, width), 100, dtype=torch.uint8)
    for i, label in enumerate(labels):
        pixels[i].tensor_split(3, dim=2)[label][...] = 130 + i
    return ImageSet(pixels, torch.tensor(labels), NAMES)


def png(figure, path):
    artifacts.write_figure(path, figure)
    return path.read_bytes()


def shown(figure):
    """The axes that hold an image."""
    return [axes for axes in figure.axes if axes.images]


def pixels(axes):
    return np.asarray(axes.images[0].get_array())


@pytest.mark.parametrize("shape", SHAPES, ids=["grey", "rgb"])
def test_attack_grid_shows_the_same_images_clean_and_attacked(shape):
    data = image_set(shape, [0, 1, 2, 0, 1, 2])
    figure = figures.attack_grid(Reader(), data, [0.01, 0.3], name="standard", columns=4)
    assert isinstance(figure, Figure) and "standard" in figure.get_suptitle()
    rows = [shown(figure)[start : start + 4] for start in (0, 4, 8)]
    assert len(shown(figure)) == 12
    assert [row[0].get_ylabel() for row in rows] == ["clean", "eps 0.01", "eps 0.3"]
    chosen = data.take(images.sample(data.labels, 4))
    x = chosen.images.float() / 255
    for row, eps in zip(rows, (0.0, 0.01, 0.3), strict=True):
        assert [axes.get_title() for axes in row] == [NAMES[label] for label in chosen.labels]
        expected = attacks.fgsm(Reader(), x, chosen.labels, eps)
        for axes, image in zip(row, expected, strict=True):
            assert np.allclose(pixels(axes), image.permute(1, 2, 0).squeeze().numpy(), atol=1e-6)
            assert axes.images[0].get_clim() == (0, 1)  # not stretched to the image's own range


def test_predicted_names_are_green_if_right_and_red_if_wrong():
    data = image_set((1, 9, 9), [0, 1, 2])
    figure = figures.attack_grid(Reader(), data, [0.3], name="standard")
    clean, attacked = shown(figure)[:3], shown(figure)[3:]
    x = data.images.float() / 255
    guesses = Reader()(attacks.fgsm(Reader(), x, data.labels, 0.3)).argmax(1)
    assert (guesses != data.labels).all()
    for axes, label in zip(clean, data.labels, strict=True):
        assert (axes.get_xlabel(), axes.xaxis.label.get_color()) == (NAMES[label], figures.RIGHT)
    for axes, label, guess in zip(attacked, data.labels, guesses, strict=True):
        assert (axes.get_title(), axes.get_xlabel()) == (NAMES[label], NAMES[guess])
        assert axes.xaxis.label.get_color() == figures.WRONG


def test_targeted_grids_colour_the_targets_name_apart():
    """A right name is green, the target's purple, any other red; the three are told apart in one row."""
    data = ImageSet(image_set((1, 8, 8), [0, 1, 2]).images, torch.tensor([0, 0, 0]), NAMES)
    row = figures.targeted_grids(Reader(), Reader(), data, 2, 0.1, columns=4, rows=1)["clean_standard"].axes
    colours = [axes.xaxis.label.get_color() for axes in row[:3]]
    assert colours == [figures.RIGHT, figures.WRONG, figures.HIT] and len(set(colours)) == 3
    assert [axes.get_xlabel() for axes in row] == [*NAMES, ""]
    assert [len(axes.images) for axes in row] == [1, 1, 1, 0]


@pytest.mark.parametrize("shape", SHAPES, ids=["grey", "rgb"])
def test_targeted_grids_show_each_attack_to_the_model_it_names(shape):
    class Upside(Reader):  # reads the negative: its own attack differs from the other's
        def forward(self, x):
            return super().forward(1 - x)

    data = image_set(shape, [0, 1, 2, 0, 1, 2, 0, 1, 2])
    grids = figures.targeted_grids(Reader(), Upside(), data, 2, 0.2, columns=2, rows=2)
    assert list(grids) == ["clean_standard", "attacked_standard", "transferred_robust", "attacked_robust"]
    others = data.take((data.labels != 2).nonzero().squeeze(1))
    chosen = others.take(images.sample(others.labels, 4))
    x, goal = chosen.images.float() / 255, torch.full((4,), 2)
    on_standard, on_robust = (attacks.fgsm(model, x, goal, 0.2, targeted=True) for model in (Reader(), Upside()))
    expected = {
        "clean_standard": (x, Reader()),
        "attacked_standard": (on_standard, Reader()),
        "transferred_robust": (on_standard, Upside()),
        "attacked_robust": (on_robust, Upside()),
    }
    for name, (batch, model) in expected.items():
        axes = shown(grids[name])
        assert [a.get_title() for a in axes] == [NAMES[label] for label in chosen.labels]
        assert [a.get_xlabel() for a in axes] == [NAMES[guess] for guess in model(batch).argmax(1)]
        for a, image in zip(axes, batch, strict=True):
            assert np.allclose(pixels(a), image.permute(1, 2, 0).squeeze().numpy(), atol=1e-6)
    hits = [a.xaxis.label.get_color() for a in shown(grids["attacked_standard"]) if a.get_xlabel() == NAMES[2]]
    assert hits and set(hits) == {figures.HIT}
    assert all("deer" in grids[name].get_suptitle() for name in list(grids)[1:])


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 2, 2]], ids=str)  # fewer than columns; the target (1) missing
def test_few_images_and_missing_classes_are_drawn(labels, tmp_path):
    data = image_set((3, 16, 16), labels)
    grid = figures.attack_grid(Reader(), data, [0.1], name="robust", columns=10)
    assert len(shown(grid)) == 2 * len(labels)
    others = [NAMES[label] for label in labels if label != 1]
    for name, figure in figures.targeted_grids(Reader(), Reader(), data, 1, 0.1).items():
        assert [axes.get_title() for axes in shown(figure)] == others, name
    assert png(figure, tmp_path / "grid.png").startswith(b"\x89PNG")


def test_fooled_grid_shows_what_each_model_is_surest_of_under_its_true_name():
    known, ood = ["ant", "bee"], image_set((1, 8, 8), [0, 1, 2, 0])
    guesses = {
        "standard": ([0.1, 0.9, 0.5, 0.7], torch.tensor([0, 1, 0, 1])),
        "robust": ([4.0, 1.0, 3.0, 2.0], torch.tensor([1, 1, 0, 0])),
    }
    figure = figures.fooled_grid(guesses, ood, known, columns=2)
    rows = {"standard": [(1, "bee"), (3, "bee")], "robust": [(0, "bee"), (2, "ant")]}
    drawn = [(number, guess) for row in rows.values() for number, guess in row]
    for axes, (number, guess) in zip(shown(figure), drawn, strict=True):
        assert (axes.get_title(), axes.get_xlabel()) == (NAMES[ood.labels[number]], guess)
        assert axes.xaxis.label.get_color() == figures.WRONG  # no known class is the right one
        assert np.allclose(pixels(axes), ood.images[number, 0].numpy() / 255, atol=1e-6)
    assert [axes.get_ylabel() for axes in shown(figure)] == ["standard", "", "robust", ""]


@pytest.mark.filterwarnings("error")
def test_loss_surfaces_lie_as_they_were_measured_and_flat_ones_are_drawn():
    surface = torch.arange(9.0).view(3, 3)  # rises by 3 along FGSM's direction and by 1 along the random one
    figure = figures.loss_surfaces({"standard": surface, "robust": torch.zeros(3, 3)}, [-0.1, 0.0, 0.1])
    standard, robust = (axes for axes in figure.axes if axes.get_title())
    (mesh,) = (drawn for drawn in standard.collections if drawn.get_array() is not None and drawn.get_array().size == 9)
    assert np.asarray(mesh.get_array()).reshape(3, 3).tolist() == surface.tolist()
    corners = mesh.get_coordinates()  # of the cells: x along a row, y from row to row
    assert (np.diff(corners[0, :, 0]) > 0).all() and (np.diff(corners[:, 0, 1]) > 0).all()
    assert standard.get_ylabel().startswith("along FGSM") and standard.get_title().startswith("standard")
    assert len(robust.collections) == 1  # no contour lines


def confidences(rng, size):
    return rng.normal(1, 1, size), rng.normal(0, 1, size // 4)


def test_score_histograms_show_shares_of_both_sets_and_say_the_auroc():
    rng = np.random.default_rng(0)
    curves = {model: {score: confidences(rng, 400) for score in ("max_logit", "knn")} for model in ("first", "second")}
    aurocs = {"first": {"max_logit": 0.8123, "knn": 0.5}, "second": {"max_logit": 0.25, "knn": 1.0}}
    figure = figures.score_histograms(curves, aurocs, bins=20)
    assert [axes.get_title() for axes in figure.axes] == [
        "first: max logit\nAUROC 0.812",
        "first: knn\nAUROC 0.500",
        "second: max logit\nAUROC 0.250",
        "second: knn\nAUROC 1.000",
    ]
    for axes in figure.axes:
        inside, outside = (patch.get_data().values for patch in axes.patches if patch.get_fill())
        for shares in (inside, outside):  # the central 98 % of both: the sets' sizes (4 to 1) do not show
            assert len(shares) == 20 and 0.9 < shares.sum() <= 1
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["ID", "OOD"]


def test_histograms_of_many_scores_go_on_below():
    curves = {model: {f"s{i}": (np.arange(9.0), np.arange(5.0)) for i in range(5)} for model in ("a", "b")}
    figure = figures.score_histograms(curves, {model: {f"s{i}": 0.5 for i in range(5)} for model in ("a", "b")})
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes if axes.axison]
    assert titles == ["a: s0", "a: s1", "a: s2", "a: s3", "b: s0", "b: s1", "b: s2", "b: s3", "a: s4", "b: s4"]


def test_scores_all_equal_are_drawn(tmp_path):
    curves = {"only": {"max_softmax": (np.ones(30), np.ones(10))}}
    figure = figures.score_histograms(curves, {"only": {"max_softmax": 0.5}})
    assert png(figure, tmp_path / "equal.png").startswith(b"\x89PNG")


def test_pictures_drawn_twice_have_equal_bytes(tmp_path):
    def draw():
        data = image_set((3, 16, 16), [0, 1, 2, 0])
        rng = np.random.default_rng(0)
        return [
            figures.attack_grid(Reader(), data, [0.1], name="standard"),
            *figures.targeted_grids(Reader(), Reader(), data, 2, 0.1, columns=2, rows=1).values(),
            figures.score_histograms({"m": {"s": confidences(rng, 100)}}, {"m": {"s": 0.7}}),
        ]

    for number, (one, other) in enumerate(zip(draw(), draw(), strict=True)):
        content = png(one, tmp_path / f"{number}.png")
        assert content == png(other, tmp_path / f"{number} again.png")
        assert b"matplotlib" not in content.lower()  # a version in it would differ between machines


# Letters


@pytest.fixture
def no_fonts(monkeypatch):
    """A machine with matplotlib's own font alone."""
    monkeypatch.setattr(figures, "FONTS", ("DejaVu Sans",))


@pytest.fixture
def install(no_fonts, monkeypatch, tmp_path):
    """Put a font of one letter, drawn as a triangle, behind matplotlib's own."""
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])

    def install(letter):
        pen = TTGlyphPen(None)
        for step, corner in zip((pen.moveTo, pen.lineTo, pen.lineTo), ((0, 0), (500, 1000), (1000, 0)), strict=True):
            step(corner)
        pen.closePath()
        glyph, family = pen.glyph(), f"Only {ord(letter):x}"
        font = FontBuilder(1000)
        font.setupGlyphOrder([".notdef", "letter"])
        font.setupCharacterMap({ord(letter): "letter"})
        font.setupGlyf({".notdef": glyph, "letter": glyph})
        font.setupHorizontalMetrics({".notdef": (1000, 0), "letter": (1000, 0)})
        font.setupHorizontalHeader(ascent=1000, descent=0)
        font.setupNameTable({"familyName": family, "styleName": "Regular"})
        font.setupOS2(sTypoAscender=1000, usWeightClass=400)
        font.setupPost()
        font.save(tmp_path / f"{family}.ttf")
        font_manager.fontManager.addfont(tmp_path / f"{family}.ttf")
        monkeypatch.setattr(figures, "FONTS", ("DejaVu Sans", "not there", family))

    return install


def grid_of(name, path):
    """The bytes of a grid of images of a class of this name."""
    data = ImageSet(image_set((1, 9, 9), [0, 0]).images, torch.zeros(2, dtype=torch.int64), [name, *NAMES[1:]])
    return png(figures.attack_grid(Reader(), data, [0.1], name="standard"), path)


@pytest.mark.filterwarnings("error::UserWarning")
def test_letters_that_no_font_has_are_boxes_and_said_once(no_fonts, tmp_path, capsys):
    boxed = grid_of("a\u732b", tmp_path / "a.png")
    assert capsys.readouterr().out == (
        "warning: no font here has the letters of class a\u732b: install one such as fonts-noto-cjk\n"
    )
    assert boxed == grid_of(f"a{figures.BOX}", tmp_path / "a.png")
    grid_of("a\u732b", tmp_path / "a.png")
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("error::UserWarning")
def test_many_names_without_letters_give_one_line(no_fonts, capsys):
    data = ImageSet(torch.zeros(3, 1, 9, 9, dtype=torch.uint8), torch.arange(3), [chr(0x4E00 + i) for i in range(99)])
    figures.fooled_grid({"standard": (np.arange(3), torch.tensor([0, 1, 2]))}, data, NAMES)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "class \u4e00, \u4e01, \u4e02 and 96 more: install" in said


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_font_that_has_the_letters_draws_them_and_no_others(install, tmp_path, capsys, caplog):
    latin, boxed = grid_of("cat", tmp_path / "a.png"), grid_of("a\u72ac", tmp_path / "a.png")
    capsys.readouterr()
    install("\u72ac")
    drawn = grid_of("a\u72ac", tmp_path / "a.png")
    assert drawn != boxed and grid_of("cat", tmp_path / "a.png") == latin
    assert capsys.readouterr().out == "" and not caplog.records
