// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

#include "tilewise/base/api.h"
#include "tilewise/plan/pack.h"
#include "tilewise/plan/visible.h"

// Vertical and slash lines of a causal attention map: which there are, and the runs of keys that a row of queries reads because of them.
namespace tilewise::select {

/// What one head reads: pair (q, k) of tokens where k is one of `vertical`, or q - k one of `slash`.
struct Lines {
  std::vector<int32_t> vertical, slash;  // ascending, below Sk
};

struct LineCounts {
  int64_t vertical = 0, slash = 0;              // lines kept, forced ones among them; more than there are: all
  int64_t first_keys = 0, nearest_offsets = 0;  // kept before all others
};

/// The lines with the largest sums; ties go to the smaller index. Where a sum is not finite, all of them: the head reads everything.
TILEWISE_API Lines best_lines(const float* key_sums, const float* offset_sums, int64_t seqlen_k, const LineCounts& counts);

/// Indices of the `count` largest of `size` values >= 0, ascending; the first `forced` come before all others.
TILEWISE_API std::vector<int32_t> largest(const float* values, int64_t size, int64_t count, int64_t forced = 0);

/// Runs of keys for rows that begin at multiples of `tile` in tokens (or behind one, within its tile).
class TILEWISE_API LineRows {
 public:
  /// exact    an offset o covers the keys [end - tile - o, end - o) of the row that ends at token `end`: what its queries reach over o, unaligned. Ranges
  ///          that touch or overlap are walked upward and joined in steps of `tile`, so a range may end up to tile - 1 keys past what is needed. Vertical
  ///          lines outside them are single keys.
  /// aligned  the tiles of keys that hold a key on a line, vertical or slash, for one of the row's queries; nothing else.
  enum class Cover : uint8_t { exact, aligned };

  LineRows(Lines lines, int tile, int64_t seqlen_k, Cover cover);
  /// Appends to an empty row the runs that the queries of tokens [first, last) read, which lie in one tile: ranges below the first query `whole` (lengths a multiple of
  /// the tile), what reaches further `masked`, and the vertical lines that no range holds `picked`, or `masked` where a query of the row does not see them.
  /// O(ranges + vertical lines); aligned: O(tiles of keys).
  void set_row(int64_t first, int64_t last, plan::PackedRow& row) const;
  /// The same for the queries of any tokens (ascending, as they count), and keys that lie in slots: exactly the pairs on a line for one of the queries, as runs
  /// of slots; aligned: the tiles of slots that hold such a key. `is_tested`: the row holds padding, so all of it is masked. O(stretches of tokens * slots).
  void set_row(const std::vector<int64_t>& tokens, const plan::SlotTokens& keys, bool is_tested, plan::PackedRow& row) const;

 private:
  struct Range {
    int64_t first, last;
  };
  template <class Body>
  void for_ranges(int64_t end, Body&& body) const;
  void set_aligned_row(int64_t first, int64_t last, plan::PackedRow& row) const;
  bool is_on_slash(int64_t first_query, int64_t last_query, int64_t first_key, int64_t last_key) const;

  Lines lines_;
  int64_t tile_, seqlen_k_;
  Cover cover_;
  std::vector<int32_t> nearest_below_;  // [Sk]: the largest offset that is kept and not above the index, or -1
  std::vector<uint8_t> has_column_;  // [Tk]: whether the tile of keys holds a vertical line
};

}  // namespace tilewise::select
