"""Sensitivity tables of any origin: what is read, and everything that is wrong with one at once."""

import math

import numpy as np
import pytest

from bitplan.core.errors import UserError
from bitplan.sensitivity.table import figure_of, read_sensitivity_table

HEADER = "layer,params,format,bytes,kld"


def read(tmp_path, text, name="s.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_sensitivity_table(path)


def problems(tmp_path, text) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    return [str(problem).split("] ", 1)[1].removeprefix(str(tmp_path / "s.csv")) for problem in caught.value.problems]


def test_layers_and_formats_come_in_the_order_of_the_table_and_may_lack_one_another(tmp_path):
    made = read(tmp_path, f"{HEADER}\nb,8,q6_K,7,0.5\na,4,other,2,0\nb,8,other,4,1e-3\n")
    assert made.layers == ("b", "a") and made.formats == ("q6_K", "other") and made.params.tolist() == [8, 4]
    assert made.size.tolist() == [[7, 4], [0, 2]] and made.kld.tolist() == [[0.5, 0.001], [np.inf, 0]]
    assert made.has.tolist() == [[True, True], [False, True]] and made.categories == ("", "")


@pytest.mark.parametrize(
    "text",
    [
        "kld\tnote\tlayer\tparams\tformat\tbytes\tcategory\n0.5\tx\ta\t4\tf\t2\tattn\n",
        "\ufeffkld,note,layer,params,format,bytes,category\r\n0.5,x,a,4,f,2,attn\r\n\r\n",
        'kld;note;layer;params;format;bytes;category\n0.5;"x;y";a;4;f;2;attn\n',
    ],
)
def test_tabs_commas_semicolons_other_columns_and_line_ends_are_read(tmp_path, text):
    made = read(tmp_path, text)
    assert made.layers == ("a",) and made.kld.tolist() == [[0.5]] and made.categories == ("attn",)


def test_rows_that_quantize_inputs_too_are_left_out(tmp_path):
    made = read(
        tmp_path, "layer,params,format,inputs,bytes,kld\na,4,int4,int8_token,2,\na,4,int4,bf16,2,0.5\na,4,q,,2,1\n"
    )
    assert made.formats == ("int4", "q") and made.kld.tolist() == [[0.5, 1]]


def test_an_empty_figure_counts_as_none_only_where_no_token_reached_the_layer(tmp_path, caplog):
    header = f"{HEADER},tokens"
    made = read(tmp_path, f"{header}\na,4,f,2,,0\na,4,g,1,,0\nb,4,f,2,0.5,12\nb,4,g,1,0.7,12\n")
    assert made.kld.tolist() == [[0, 0], [0.5, 0.7]] and made.has.all()
    assert "no token reached 1 layers (a)" in caplog.text
    for cells in ("a,4,f,2,,12", "a,4,f,2,,", "a,4,f,2,nan,12", "a,4,f,2,high,0", "a,4,f,2,-1,0"):
        with pytest.raises(UserError, match="kld is"):
            read(tmp_path, f"{header}\n{cells}\n")


@pytest.mark.parametrize(
    ("cell", "tokens", "figure"),
    [("", "0", 0.0), (None, 0, 0.0), (math.nan, 0, 0.0), ("0.5", "0", 0.5), ("2", None, 2.0), (0.25, 7, 0.25)],
)
def test_every_reader_has_one_meaning_of_a_cell(cell, tokens, figure):
    assert figure_of(cell, tokens) == figure


@pytest.mark.parametrize(
    ("cell", "tokens"), [("", None), (None, 3), ("", ""), ("", "none"), ("x", 0), (math.nan, None)]
)
def test_what_is_no_figure_is_none(cell, tokens):
    assert math.isnan(figure_of(cell, tokens))


def test_every_kind_of_wrong_row_is_told_at_once_with_its_lines(tmp_path):
    rows = ["a,4,f,2,nan", "a,4,g,2,-1", "a,5,h,2,0", "b,0,f,-3,0", "b,0,f,1,", ",1,,1,1", "c,1,f,1,inf"]
    assert problems(tmp_path, "\n".join([HEADER, *rows])) == [
        ", line 7: no layer. Each row needs a layer and a format",
        ", line 7: no format. Each row needs a layer and a format",
        ", lines 5, 6: params is '0', not a number above 0. Give the number of weights of the layer",
        ", line 5: bytes is '-3', not a number of 0 or more. Give the size of the layer in this format",
        ", lines 2, 3, 6 and 1 more: kld is 'nan', not a number of 0 or more. Give the damage in nats, or leave out the row: the"
        " layer cannot have this format then. Of a layer that no token reached, 0 in the column tokens says so",
        ", line 6: b already has a row for f. Give one row per layer and format",
        ", line 4: params of a is 5, 4 in an earlier row. Use the same number in all rows of a layer",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ": has no column layer, params, format, bytes, kld. Its columns are: none"),
        ("layer,params,format,bytes,mse\n", ": has no column kld. Its columns are: layer, params, format, bytes, mse"),
        (f"{HEADER}\n", ": has no rows of formats for weights"),
        (f"{HEADER}\na,1,f,1,1\na,1,g,1\n", ", line 3: the number of cells differs from the header's 5"),
        (f"{HEADER}\na,1,f,many,1\n", ", line 2: bytes is 'many', not a number of 0 or more"),
        (b"\xff\xfe\x00", ": is not a CSV or TSV table"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, text, told):
    (line,) = problems(tmp_path, text)
    assert line.startswith(told)
