"""Pictures: that every member has one, and that what is drawn are the numbers that the members compute."""

import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import pezoo
from pezoo.cli import main
from pezoo.drawing import picture, save
from pezoo.drawing.panels import SEEN, UNSEEN
from pezoo.registry import load_plugin
from tools.catalogue import DRAWN, members

L = 64
PLUGIN = """
from pezoo import Encoding, Extension, Traits, register

@register("staircase", title="A staircase", family="custom")
class Staircase(Encoding):
    "Falls by one every ten tokens."
    traits = Traits(shift_invariant=True)
    def distance_bias(self, distance):
        return -(distance.abs() / 10).floor().expand(self.shape.n_heads, *distance.shape)

@register("halved", title="Half of every distance", family="custom")
class Halved(Extension):
    "Coordinates divided by two."
    def coordinates(self, positions):
        return positions.scaled(0.5)
"""


def panels(figure):
    """Axes by title, without colour bars."""
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def panel(figure, title):
    (found,) = [axes for name, axes in panels(figure).items() if title in name]
    return found


def curves(axes):
    """Points (x, y) of the curves with a name."""
    return {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}


def heights(axes, label):
    return dict(curves(axes)[label].tolist())


@pytest.mark.parametrize("name", [e.name for e in members(*DRAWN)])
def test_every_member_has_a_picture_with_units_and_the_training_length(name):
    figure = picture(name)
    assert figure.get_suptitle().startswith(f"{name}: ")
    assert f"Training length L = {L} tokens." in figure.get_supxlabel()
    assert panels(figure)
    for axes in panels(figure).values():
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.lines or axes.images
        drawn = [*(line.get_ydata() for line in axes.lines), *(image.get_array() for image in axes.images)]
        drawn = [np.ma.compressed(np.ma.masked_invalid(d)) for d in drawn if len(d)]
        assert all(d.size for d in drawn)
        assert any(d.max() > d.min() for d in drawn), "a constant needs no panel"


def test_pairs_that_never_turn_in_training_are_marked():
    axes = panel(picture("rope"), "wavelength")
    points = {line.get_color(): line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "o"}
    wavelengths = [2 * math.pi * 10000 ** (k / 8) for k in range(8)]
    assert points[SEEN] == pytest.approx(wavelengths[:3])
    assert points[UNSEEN] == pytest.approx(wavelengths[3:])
    assert wavelengths[2] < L < wavelengths[3]


def test_frequencies_before_and_after():
    axes = panel(picture("ntk"), "wavelength")
    lines = [line for line in axes.lines if line.get_color() in (SEEN, UNSEEN)]
    old, new = (sorted(y for line in lines if line.get_marker() == m for y in line.get_ydata()) for m in ("o", "s"))
    ratio = [after / before for before, after in zip(old, new, strict=True)]
    assert ratio == pytest.approx([4 ** (k / 7) for k in range(8)], rel=1e-4)


def test_frequencies_of_zero_are_marked_as_such():
    axes = panel(picture("p_rope"), "wavelength")
    assert sum(text.get_text() == "∞" for text in axes.texts) == 2


def test_bias_against_distance_for_each_head():
    axes = panel(picture("alibi"), "bias")
    for h in range(4):
        assert heights(axes, f"head {h + 1}")[L] == -(2.0 ** (-2 * (h + 1))) * L


def test_bias_with_an_extension_and_without():
    axes = panel(picture("alibi+pi"), "bias")
    assert heights(axes, "head 1")[200] == pytest.approx(-0.25 * 200 / 4)
    before = next(line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_ydata()) == 4 * L)
    assert before.get_ydata()[200] == -50


def test_bias_of_pairs_is_a_map_where_what_is_unseen_is_empty():
    (image,) = panels(picture("fire"))["bias of head 1"].images
    seen = ~np.ma.getmaskarray(image.get_array())
    assert (seen == np.tril(np.ones((2 * L, 2 * L), dtype=bool))).all()


def test_coordinates_in_training_and_testing():
    figure = picture("random")
    training = curves(panel(figure, "coordinates in training"))
    rows = [training[f"sequence {n}"][:, 1] for n in range(1, 5)]
    assert all((np.diff(row) >= 1).all() and row.max() < 16 * L and len(row) == L for row in rows)
    assert len({tuple(row) for row in rows}) == 4
    testing = heights(panel(picture("pi"), "coordinates in testing"), "read as")
    assert testing[200] == 50
    tuning = picture("clex")
    assert panel(tuning, "coordinates in tuning")


def test_far_regions_and_masks():
    figure = picture("rerope")
    read = heights(panel(figure, "last query"), "read as")
    assert read[20] == 20
    assert set(list(read.values())[32:]) == {32}
    (image,) = panel(figure, "distance each pair").images
    assert image.get_array().max() == 32
    (image,) = panel(picture("window"), "what a query sees").images
    seen = ~np.ma.getmaskarray(image.get_array())
    assert seen.sum(axis=1).tolist() == [min(i + 1, L) for i in range(2 * L)]


def test_factor_on_the_logits():
    axes = panel(picture("logn"), "factor")
    drawn = dict(axes.lines[0].get_xydata().tolist())
    assert drawn[16 * L] == pytest.approx(math.log(1024) / math.log(64))
    assert drawn[L // 4] == 1


@pytest.mark.parametrize("scheme", ["rope+sink_logits:init=1", "alibi+sink_logits:learned=false:init=1"])
def test_weight_of_a_sink(scheme):
    drawn = heights(panel(picture(scheme), "sink"), "each head")
    assert {n: drawn[n] for n in (1, L, 4 * L)} == pytest.approx(
        {n: math.e / (math.e + n) for n in (1, L, 4 * L)}, rel=1e-5
    )


def test_content_panels_are_of_what_the_hook_adds():
    drawn = curves(panel(picture("shaw"), "term added"))
    assert all(len(set(points[16:, 1].tolist())) == 1 < len(set(points[:, 1].tolist())) for points in drawn.values())
    rope = heights(panel(picture("rope"), "q·k"), "k = q")
    assert max(rope.values()) == rope[0]


def test_where_an_encoding_is_undefined_it_says_so():
    figure = picture("learned")
    assert "undefined" in [text.get_text() for text in panel(figure, "embeddings").texts]
    assert "Undefined at 128 tokens" in " ".join(figure.get_supxlabel().split())


def test_mixtures_have_the_panels_of_their_parts():
    figure = picture("{heads: {rope: 2, alibi: 6}}")
    assert [title.split("\n")[0] for title in panels(figure)] == ["rope", "rope", "alibi"]
    assert "head 6" in curves(panel(figure, "bias"))
    figure = picture({"layers": ["nope", "alibi", "nope"]})
    assert [title.split("\n")[0] for title in panels(figure)] == ["nope", "alibi"]


def test_what_is_drawn_is_read_from_the_hooks(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    load_plugin(file)
    assert heights(panel(picture("staircase"), "bias"), "head 1")[75] == -7
    assert heights(panel(picture("staircase+halved"), "bias"), "head 1")[75] == -3
    assert heights(panel(picture("halved"), "coordinates in testing"), "read as")[75] == 37.5


def test_other_sizes():
    figure = picture("alibi", train_length=5, n_heads=3, d_model=12)
    assert set(curves(panel(figure, "bias"))) == {"head 1", "head 2", "head 3"}
    for name in ("rope+yarn", "fire", "sinusoidal", "lm_infinite", "t5", "random"):
        assert panels(picture(name, train_length=1, n_heads=1, d_model=4))


@pytest.mark.parametrize(
    ("scheme", "sizes", "message"),
    [
        ("ropee", {}, "Did you mean"),
        ("rope", {"d_model": 30}, "d_model = 30"),
        ("rope+random:max_length=10", {}, "cannot draw .* 10 positions"),
        ("rope", {"n_heads": 64}, "leaves none to turn"),
    ],
)
def test_mistakes(scheme, sizes, message):
    with pytest.raises(pezoo.UserError, match=message):
        picture(scheme, **sizes)


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_same_picture_gives_the_same_bytes(suffix, tmp_path):
    paths = [save(picture("window"), tmp_path / f"{n}.{suffix}") for n in range(2)]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert len(first) > 1000


def test_show_saves_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["show", "yarn", "--save", "yarn.svg", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("{")
    assert captured.err == "picture: yarn.svg\n"
    assert b"<svg" in (tmp_path / "yarn.svg").read_bytes()
    assert main(["show", "yarn", "--save", "yarn.gif"]) == 2
    assert "must end in .png, .svg, .pdf" in capsys.readouterr().err


def test_panels_are_of_what_an_extension_changes():
    assert len(panels(picture("kerple+pi"))) == 3
    assert len(panels(picture("kerple+pose"))) == 2  # plain in testing
    assert len(panels(picture("rope+yarn"))) == len(panels(picture("rope+leaky_rerope"))) == 2


def laid_out(figure):
    """The renderer of a figure whose parts have their places."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


@pytest.mark.parametrize("scheme", ["nope", "rope+window"])
def test_a_single_square_panel_stands_in_the_middle(scheme):
    figure = picture(scheme)
    laid_out(figure)
    boxes = [axes.get_position() for axes in figure.axes]
    middle = (min(box.x0 for box in boxes) + max(box.x1 for box in boxes)) / 2
    assert middle == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("scheme", ["alibi", "sinusoidal", "cope", "random"])
def test_labels_and_legends_cover_nothing(scheme):
    figure = picture(scheme)
    renderer = laid_out(figure)
    for axes in panels(figure).values():
        inside = axes.get_window_extent(renderer)
        title = axes.title if axes.title.get_text() else axes._left_title
        marks = [text for text in axes.texts if text.get_text() == "L"]
        for mark in marks:
            box = mark.get_window_extent(renderer)
            assert box.y0 >= inside.y1 or box.x0 >= inside.x1
            assert not box.overlaps(title.get_window_extent(renderer))
        if (legend := axes.get_legend()) is not None:
            covered = legend.get_window_extent(renderer)
            lines = [line for line in axes.lines if len(line.get_xdata()) > 1]
            points = np.concatenate([line.get_transform().transform(line.get_xydata()) for line in lines])
            assert not covered.count_contains(points[np.isfinite(points).all(1)])


def test_a_constant_factor_is_said_instead():
    figure = picture("rope+yarn:factor=8")
    assert len(panels(figure)) == 1
    assert f"The factor on q·k is {(0.1 * math.log(8) + 1) ** 2:.3g} at all lengths." in figure.get_supxlabel()
    assert [*panels(picture("rope+yarn"))][-1].startswith("factor on q·k")


def test_a_scheme_that_no_panel_shows_is_one_message(monkeypatch):
    monkeypatch.setattr("pezoo.drawing.panels_of", lambda view: [])
    with pytest.raises(pezoo.UserError, match=r"nothing to draw of rope: it changes no number that a panel shows"):
        picture("rope")
