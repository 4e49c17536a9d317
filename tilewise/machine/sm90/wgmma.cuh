// SPDX-License-Identifier: Apache-2.0
// wgmma: 64 rows of a warpgroup times a matrix in shared memory, f32 accumulators in registers. Asynchronous: between the first
// wgmma and its wait, nobody may touch the accumulators or the A registers.
#pragma once

#include "tilewise/machine/sm90/ptx.cuh"

namespace tilewise::machine::sm90 {

/// Orders earlier register and shared-memory writes of this warpgroup before its next wgmma.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most kPending groups are in flight. The registers named here were in flight: the compiler may not read them earlier.
template <int kPending, int kRegisters>
__device__ inline void wgmma_wait_group(float (&registers)[kRegisters]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

/// Shared-memory matrix of 128-byte rows under the 128-byte swizzle, in groups of 8 rows (1024 bytes).
/// Rows along M or N, 64 elements of K a row: the next 8 rows follow at 1024.
__device__ inline uint64_t wgmma_descriptor_k_major(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | kSwizzle128;
}
/// Rows along K, 64 elements of N a row: the next 8 of K follow at 1024, the next 64 of N at `block_bytes`.
__device__ inline uint64_t wgmma_descriptor_mn_major(uint32_t address, uint32_t block_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return uint64_t{(address & 0x3FFFF) >> 4} | uint64_t{block_bytes >> 4} << 16 | uint64_t{1024 >> 4} << 32 | kSwizzle128;
}

/// d[64, N] (+)= a[64, 16] b[16, N]. `ss`: a in shared memory. `rs`: a in registers. kTransposeB: b's rows run along K.
template <int N, class T>
struct Wgmma;

#define TILEWISE_WGMMA_N64_D \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TILEWISE_WGMMA_N64_OPERANDS \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
      "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), \
      "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])

#define TILEWISE_WGMMA_N128_D \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TILEWISE_WGMMA_N128_OPERANDS \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
      "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), \
      "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), \
      "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), \
      "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
      "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

#define TILEWISE_WGMMA_N256_D \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define TILEWISE_WGMMA_N256_OPERANDS \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
      "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), \
      "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), \
      "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), \
      "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
      "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), \
      "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), \
      "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), \
      "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), \
      "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), \
      "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), \
      "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

template <>
struct Wgmma<64, bf16> {
  __device__ static void ss(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" TILEWISE_WGMMA_N64_D "}, %32, %33, accumulate, 1, 1, 0, 0;\n}"
                 : TILEWISE_WGMMA_N64_OPERANDS
                 : "l"(a), "l"(b), "r"(int{accumulate}));
  }
  /// Rows of both run along K.
  __device__ static void ss_transposed(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" TILEWISE_WGMMA_N64_D "}, %32, %33, accumulate, 1, 1, 1, 1;\n}"
                 : TILEWISE_WGMMA_N64_OPERANDS
                 : "l"(a), "l"(b), "r"(int{accumulate}));
  }
  template <bool kTransposeB>
  __device__ static void rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" TILEWISE_WGMMA_N64_D
                 "}, {%32, %33, %34, %35}, %36, accumulate, 1, 1, %38;\n}"
                 : TILEWISE_WGMMA_N64_OPERANDS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeB}));
  }
};
template <>
struct Wgmma<64, f16> {
  __device__ static void ss(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" TILEWISE_WGMMA_N64_D "}, %32, %33, accumulate, 1, 1, 0, 0;\n}"
                 : TILEWISE_WGMMA_N64_OPERANDS
                 : "l"(a), "l"(b), "r"(int{accumulate}));
  }
  /// Rows of both run along K.
  __device__ static void ss_transposed(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" TILEWISE_WGMMA_N64_D "}, %32, %33, accumulate, 1, 1, 1, 1;\n}"
                 : TILEWISE_WGMMA_N64_OPERANDS
                 : "l"(a), "l"(b), "r"(int{accumulate}));
  }
  template <bool kTransposeB>
  __device__ static void rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" TILEWISE_WGMMA_N64_D "}, {%32, %33, %34, %35}, %36, accumulate, 1, 1, %38;\n}"
                 : TILEWISE_WGMMA_N64_OPERANDS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeB}));
  }
};
template <>
struct Wgmma<128, bf16> {
  __device__ static void ss(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" TILEWISE_WGMMA_N128_D "}, %64, %65, accumulate, 1, 1, 0, 0;\n}"
                 : TILEWISE_WGMMA_N128_OPERANDS
                 : "l"(a), "l"(b), "r"(int{accumulate}));
  }
  template <bool kTransposeB>
  __device__ static void rs(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" TILEWISE_WGMMA_N128_D
                 "}, {%64, %65, %66, %67}, %68, accumulate, 1, 1, %70;\n}"
                 : TILEWISE_WGMMA_N128_OPERANDS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeB}));
  }
};
template <>
struct Wgmma<128, f16> {
  __device__ static void ss(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" TILEWISE_WGMMA_N128_D "}, %64, %65, accumulate, 1, 1, 0, 0;\n}"
                 : TILEWISE_WGMMA_N128_OPERANDS
                 : "l"(a), "l"(b), "r"(int{accumulate}));
  }
  template <bool kTransposeB>
  __device__ static void rs(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" TILEWISE_WGMMA_N128_D
                 "}, {%64, %65, %66, %67}, %68, accumulate, 1, 1, %70;\n}"
                 : TILEWISE_WGMMA_N128_OPERANDS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeB}));
  }
};
template <>
struct Wgmma<256, bf16> {
  __device__ static void ss(float (&d)[128], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" TILEWISE_WGMMA_N256_D "}, %128, %129, accumulate, 1, 1, 0, 0;\n}"
                 : TILEWISE_WGMMA_N256_OPERANDS
                 : "l"(a), "l"(b), "r"(int{accumulate}));
  }
  template <bool kTransposeB>
  __device__ static void rs(float (&d)[128], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %133, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" TILEWISE_WGMMA_N256_D
                 "}, {%128, %129, %130, %131}, %132, accumulate, 1, 1, %134;\n}"
                 : TILEWISE_WGMMA_N256_OPERANDS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeB}));
  }
};
template <>
struct Wgmma<256, f16> {
  __device__ static void ss(float (&d)[128], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" TILEWISE_WGMMA_N256_D "}, %128, %129, accumulate, 1, 1, 0, 0;\n}"
                 : TILEWISE_WGMMA_N256_OPERANDS
                 : "l"(a), "l"(b), "r"(int{accumulate}));
  }
  template <bool kTransposeB>
  __device__ static void rs(float (&d)[128], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, %133, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" TILEWISE_WGMMA_N256_D
                 "}, {%128, %129, %130, %131}, %132, accumulate, 1, 1, %134;\n}"
                 : TILEWISE_WGMMA_N256_OPERANDS
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeB}));
  }
};
#undef TILEWISE_WGMMA_N64_D
#undef TILEWISE_WGMMA_N64_OPERANDS
#undef TILEWISE_WGMMA_N128_D
#undef TILEWISE_WGMMA_N128_OPERANDS
#undef TILEWISE_WGMMA_N256_D
#undef TILEWISE_WGMMA_N256_OPERANDS

}  // namespace tilewise::machine::sm90
