"""Attention of single queries over a paged key/value cache, with optional ALiBi, grouped heads and shared prompts."""

from kernels.attention_decode.eager import attention_decode_eager
from kernels.attention_decode.reference import attention_decode_reference

__all__ = ["attention_decode", "attention_decode_reference"]


def attention_decode(
    q_SHK, k_PGNK, v_PGNK, table_SB, length_S, slopes_H=None, scale=None, cu_groups=None, shared_R=None
):
    """Attend from one query a sequence to the sequence's own pages.

    Shapes: S sequences (rows), H heads, G key/value heads with H a multiple of G, K head size, P pages of N positions
    each, B pages a row, R groups of neighbouring rows.

    q_SHK [S, H, K], k_PGNK and v_PGNK [P, G, N, K], float32 or bfloat16; table_SB int32 [S, B]: position j of row s is
    slot j % N of page table_SB[s, j // N]; length_S int32 [S], at least 1: a row sees positions 0 to length - 1, and
    entries of its table behind them are not looked at. slopes_H float32 [H] adds slope * key position to the scores
    (Press et al. 2022); scale defaults to 1/sqrt(K). Returns [S, H, K] in the dtype of q. No gradients.

    cu_groups int32 [R+1] and shared_R int32 [R] say which neighbours share what: rows cu_groups[r] to cu_groups[r+1]
    have the same pages for the first shared_R[r] positions (a multiple of N, at most the shortest length of the group),
    which are then read once for all of them. Sharing changes the time it takes, not the result.

    The tokens of one prompt are rows too, with the same pages and growing lengths, once all their keys are written.
    """
    return attention_decode_eager(q_SHK, k_PGNK, v_PGNK, table_SB, length_S, slopes_H, scale)
