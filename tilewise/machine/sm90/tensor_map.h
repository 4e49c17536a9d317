// SPDX-License-Identifier: Apache-2.0
// Descriptors of the bulk tensor copy engine, made on the host.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace tilewise::machine::sm90 {

/// A tensor [B, H, S, D] of 16-bit elements, D contiguous, other strides (in elements) any multiple of 8, the address of 16 bytes.
struct Tensor16 {
  void* data = nullptr;
  bool is_bf16 = true;
  int batch = 0, heads = 0, seqlen = 0, head_dim = 0;
  int64_t stride_batch = 0, stride_head = 0, stride_token = 0;

  bool operator==(const Tensor16&) const = default;
};

/// Whether channels come in blocks of 64, which the copy engine then sees as an axis of their own.
inline bool has_whole_blocks(const Tensor16& tensor) { return tensor.head_dim % 64 == 0; }

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/// cuTensorMapEncodeTiled through the runtime, so that nothing links libcuda; null where the driver lacks it.
inline EncodeTiled encode_tiled() {
  static const EncodeTiled encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(entry) : nullptr;
  }();
  return encode;
}

/// A box of `tokens` tokens and `blocks` column blocks of 64 channels lands in shared memory as [blocks][tokens][64], 128-byte rows under the
/// 128-byte swizzle. Coordinates: {0, token, block, head, batch}; where there are no whole blocks {64 * block, token, 0, head, batch}, one block a
/// box. What lies past the end of channels or tokens reads as zero and is not written.
inline CUresult make_tensor_map(CUtensorMap& map, const Tensor16& tensor, int tokens, int blocks) {
  const EncodeTiled encode = encode_tiled();
  if (!encode) return CUDA_ERROR_NOT_FOUND;
  const auto bytes = [](int64_t elements) { return static_cast<cuuint64_t>(elements) * 2; };
  // An axis of length 1 may carry any stride; the engine wants a plausible one.
  const int64_t stride_token = tensor.seqlen > 1 ? tensor.stride_token : (tensor.head_dim + 7) / 8 * 8;
  const int64_t stride_head = tensor.heads > 1 ? tensor.stride_head : stride_token * tensor.seqlen;
  const int64_t stride_batch = tensor.batch > 1 ? tensor.stride_batch : stride_head * tensor.heads;
  const bool is_blocked = has_whole_blocks(tensor);
  const cuuint64_t sizes[5] = {static_cast<cuuint64_t>(is_blocked ? 64 : tensor.head_dim), static_cast<cuuint64_t>(tensor.seqlen),
                               static_cast<cuuint64_t>(is_blocked ? tensor.head_dim / 64 : 1), static_cast<cuuint64_t>(tensor.heads),
                               static_cast<cuuint64_t>(tensor.batch)};
  const cuuint64_t strides[4] = {bytes(stride_token), 128, bytes(stride_head), bytes(stride_batch)};
  const cuuint32_t box[5] = {64, static_cast<cuuint32_t>(tokens), static_cast<cuuint32_t>(blocks), 1, 1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  return encode(&map, tensor.is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5, tensor.data, sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/// The same, out of what the calling thread has made lately: a descriptor depends on these numbers alone, and a forward takes 18 of them, most of which
/// its neighbours in a model or the call before had.
inline CUresult kept_tensor_map(CUtensorMap& map, const Tensor16& tensor, int tokens, int blocks) {
  struct Kept {
    CUtensorMap map;
    Tensor16 tensor;
    int tokens = 0, blocks = 0;
  };
  constexpr size_t kKept = 256;
  thread_local std::vector<Kept> all(kKept);
  const uint64_t mixed = (reinterpret_cast<uintptr_t>(tensor.data) / 16 + static_cast<uint64_t>(tensor.seqlen) * 131 +
                          static_cast<uint64_t>(tokens) * 8191 + static_cast<uint64_t>(blocks)) *
                         0x9E3779B97F4A7C15u;
  Kept& kept = all[mixed >> 56];
  if (kept.tokens != tokens || kept.blocks != blocks || !(kept.tensor == tensor)) {
    kept.tokens = 0;
    if (const CUresult result = make_tensor_map(kept.map, tensor, tokens, blocks); result != CUDA_SUCCESS) return result;
    kept.tensor = tensor;
    kept.tokens = tokens;
    kept.blocks = blocks;
  }
  map = kept.map;
  return CUDA_SUCCESS;
}

}  // namespace tilewise::machine::sm90
