"""Attention of one query per sequence over a paged key/value cache, with ALiBi, grouped heads and shared prompts."""

import torch

from kernels.attention_decode.cpu import DTYPES, attention_decode_cpu, library, write_pages_cpu
from kernels.attention_decode.eager import attention_decode_eager
from kernels.attention_decode.reference import attention_decode_reference
from kernels.rotary import rotate_and_write

__all__ = ["attention_decode", "attention_decode_reference", "empty_pages", "prepare", "write_pages"]


def attention_decode(
    q_SHK, k_PGNK, v_PGNK, table_SB, length_S, slopes_H=None, scale=None, window=None, cu_groups=None, shared_R=None,
    prepared=None,
):  # fmt: skip
    """Return the attention of one query per row over the row's pages: [S, H, K] in the dtype of q. No gradients.

    Shapes: S rows (sequences), H heads, G key/value heads with H a multiple of G, K head size, P pages of N positions
    each, B pages per row, R groups of adjacent rows.

    q_SHK [S, H, K], k_PGNK and v_PGNK [P, G, N, K], float32, bfloat16 or float16. table_SB int32 [S, B]: position j of
    row s is in slot j % N of page table_SB[s, j // N]. length_S int32 [S], at least 1: a row sees positions 0 to
    length - 1; later entries of its table are not read. slopes_H float32 [H] adds slope * key position to the scores
    (ALiBi, Press et al. 2022). scale defaults to 1/sqrt(K). With a window, a row sees only its last `window` positions.

    cu_groups int32 [R+1] and shared_R int32 [R] name rows that share pages: rows cu_groups[r] to cu_groups[r+1] have
    the same pages for their first shared_R[r] positions (a multiple of N, at most the shortest length of the group).
    These are read once for all of them. The last group may end after row S. Sharing changes the time, not the result.

    prepared is what `prepare` returns for these rows and groups, once for all layers of a step; by default it is
    computed here.

    The tokens of one prompt can be rows too, with the same pages and growing lengths, after all their keys are written.
    """
    assert window is None or window >= 1, window
    groups = (cu_groups, shared_R)
    if q_SHK.device.type == "cuda" and q_SHK.dtype != torch.float64:
        # Imported here: triton is not installed everywhere.
        from kernels.attention_decode.fused import attention_decode_triton

        where = (q_SHK, k_PGNK, v_PGNK, table_SB, length_S)
        return attention_decode_triton(*where, slopes_H, scale, window, *groups, prepared)
    if q_SHK.device.type == "cpu" and q_SHK.dtype in DTYPES and library() is not None:
        return attention_decode_cpu(q_SHK, k_PGNK, v_PGNK, table_SB, length_S, slopes_H, scale, window, *groups)
    return attention_decode_eager(q_SHK, k_PGNK, v_PGNK, table_SB, length_S, slopes_H, scale, window)


def prepare(rows, kv_heads, device, cu_groups=None):
    """Return what layers compute in the same way from the groups of a step's rows: on CUDA, elsewhere None."""
    if device.type != "cuda":
        return None
    from kernels.attention_decode.fused import prepare_triton

    return prepare_triton(rows, kv_heads, device, cu_groups)


def empty_pages(num_pages, num_kv_heads, page_size, head_size, dtype, device, layers=()):
    """Return uninitialised (k_PGNK, v_PGNK), with dimensions `layers` in front.

    In memory a page is all its keys, then all its values, each position by position: the written part of a page is
    contiguous.
    """
    both = torch.empty(*layers, num_pages, 2, page_size, num_kv_heads, head_size, dtype=dtype, device=device)
    k_PNGK, v_PNGK = both.unbind(-4)
    return k_PNGK.transpose(-3, -2), v_PNGK.transpose(-3, -2)


def write_pages(k_TGK, v_TGK, k_PGNK, v_PGNK, page_T, slot_T):
    """Write the keys and values of T tokens, [T, G, K], to slots slot_T of pages page_T, int64 [T] both."""
    if k_TGK.device.type == "cpu" and k_TGK.dtype in DTYPES and library() is not None:
        write_pages_cpu(k_TGK, v_TGK, k_PGNK, v_PGNK, page_T, slot_T)
    elif k_TGK.device.type == "cuda" and k_TGK.dtype != torch.float64:
        rotate_and_write(None, k_TGK, v_TGK, pages=(k_PGNK, v_PGNK, page_T, slot_T))
    else:
        k_PGNK[page_T, :, slot_T] = k_TGK
        v_PGNK[page_T, :, slot_T] = v_TGK
