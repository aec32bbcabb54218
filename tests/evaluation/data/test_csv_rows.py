"""CSV files: rows as records with their lines, and faults in one line."""

import pytest

from engine.base.errors import UserError
from evaluation.data.csv_rows import iterate_csv
from evaluation.data.files import LocalData


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_rows_have_the_line_where_they_begin(tmp_path):
    path = write(tmp_path / "a.csv", '\ufeff,more,less\n0,"one,\ntwo",b\n1,c,"d ""e"""\n')
    assert list(iterate_csv(path)) == [(2, {"more": "one,\ntwo", "less": "b"}), (4, {"more": "c", "less": 'd "e"'})]


def test_the_published_name_of_a_set_is_read(tmp_path):
    (tmp_path / "crows_pairs").mkdir()
    write(tmp_path / "crows_pairs/crows_pairs_anonymized.csv", ",sent_more,sent_less\n0,a,b\n")
    found = LocalData(tmp_path).read("crows_pairs", "en", "test")
    assert found.rows == [
        (f"{tmp_path}/crows_pairs/crows_pairs_anonymized.csv:2", {"sent_more": "a", "sent_less": "b"})
    ]
    assert found.source.num_records == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no records"),
        ("a,b\n", "holds no records"),
        ("a,a\n1,2\n", ":1: two columns are named 'a'"),
        ("a,b\n1,2\n3\n", ":3: the row has 1 cells, the header 2"),
        ('a,b\n1,"2\n', "no valid CSV"),
        (b"a,b\n1,\xff\n", "is not UTF-8"),
    ],
)
def test_faults(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        list(iterate_csv(write(tmp_path / "a.csv", text)))
    assert "\n" not in str(error.value)
