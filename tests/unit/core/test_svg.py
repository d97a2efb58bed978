from __future__ import annotations

from compressor.core.svg import Bar, Point, Series, bar_chart, show_tick, xy_chart


def test_ticks_have_no_needless_zeros() -> None:
    shown = {0.0: "0", 2.5: "2.5", 7.5: "7.5", 1000.0: "1,000", 0.125: "0.125"}
    assert {value: show_tick(value) for value in shown} == shown


def test_a_noisy_bar_is_hollow() -> None:
    drawn = bar_chart(
        [Bar(name="t", value=1.0, note="1x"), Bar(name="s", value=2.0, note="NOISY", is_hollow=True)],
        y_title="tok/s",
    )
    assert drawn.count(" hollow") == 1
    assert ">NOISY<" in drawn


def test_a_long_name_loses_its_middle_in_the_legend_and_keeps_it_when_pointed_at() -> None:
    name = "a" * 40 + "b" * 40
    drawn = xy_chart([Series(name=name, points=[Point(x=1.0, y=1.0, label="p")])], x_title="x", y_title="y")
    assert f"{'a' * 24}…{'b' * 23}<title>{name}</title>" in drawn


def test_a_front_of_one_point_is_drawn() -> None:
    point = Point(x=1.0, y=1.0, label="p")
    drawn = xy_chart([Series(name="s", points=[point])], x_title="x", y_title="y", front=[point])
    corners = drawn.partition('class="front" points="')[2].partition('"')[0].split()
    assert len(corners) == 2
    assert corners[0] == corners[1]
