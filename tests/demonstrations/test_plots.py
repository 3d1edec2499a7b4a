"""Pictures of results hold what was measured."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from demonstrations.plots.links import picture

SVG = "{http://www.w3.org/2000/svg}"


def test_every_link_has_its_bars_and_every_seed_a_dot() -> None:
    names = [f"{metric}{given}" for metric in ("mask_giou", "edit_right") for given in ("", "_given")]
    runs = {
        arm: {str(seed): dict.fromkeys(names, height + 0.1 * seed) for seed in range(3)}
        for arm, height in (("text", 0.2), ("queries", 0.6))
    }
    result = {"arms": {arm: "words" for arm in runs}, "runs": runs, "controls": {"constant": 0.07}, "seeds": [0, 1, 2]}
    drawn = ElementTree.fromstring(picture(result))
    assert len(drawn.findall(f"{SVG}circle")) == len(names) * 2 * 3
    words = [item.text for item in drawn.findall(f"{SVG}text")]
    assert words.count("text") == words.count("queries") == 2 and any("3 seeds" in (word or "") for word in words)
    heights = sorted({float(bar.attrib["height"]) for bar in drawn.findall(f"{SVG}rect") if "x" in bar.attrib})
    low, high = [height for height in heights if height > 12]  # 12: the legend's
    assert high / low == pytest.approx(0.7 / 0.3, abs=0.01)
