import re
from xml.etree import ElementTree

import numpy as np
import pytest

from burnish.evaluation.reliability_plot import plot_reliability
from burnish.stats.calibration import calibration

SVG = "{http://www.w3.org/2000/svg}"


def test_a_point_for_each_bin_where_it_belongs() -> None:
    sure = np.repeat([0.25, 0.75], [30, 10])
    right = np.array([1] * 6 + [0] * 24 + [1] * 9 + [0])
    root = ElementTree.fromstring(plot_reliability("<m> & co", "share of the vote", calibration(sure, right)))
    circles = root.findall(f"{SVG}circle")
    places = [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in circles]
    assert places == [  # 360 wide and high, from 60 and 40 on
        (pytest.approx(60 + 0.25 * 360), pytest.approx(40 + 0.8 * 360)),
        (pytest.approx(60 + 0.75 * 360), pytest.approx(40 + 0.1 * 360)),
    ]
    assert float(circles[0].attrib["r"]) > float(circles[1].attrib["r"])
    titles = [each.text for each in root.iter(f"{SVG}title")]
    assert titles[0] is not None and titles[0].startswith("<m> & co: calibration error 0.075 [")
    assert titles[1] == "30 answers, sure by 0.250 to 0.250: 0.200 right"
    numbers = [float(text) for text in re.findall(r'"(-?[0-9.]+)"', ElementTree.tostring(root).decode())]
    assert min(numbers) >= 0 and max(numbers) <= 460  # nothing is drawn outside
