// Reconstructions from nested prefixes of the dictionary, in one pass: each row's slots are put into buckets by
// the first prefix that holds them, and the sum is written out after each bucket.
#include "common/gather.h"

namespace {

inline int64_t bucket_of(int32_t index, const int64_t* prefixes, int64_t count) {
  int64_t low = 0, high = count;  // first p with index < prefixes[p]
  while (low < high) {
    const int64_t mid = (low + high) / 2;
    if (index < prefixes[mid]) high = mid;
    else low = mid + 1;
  }
  return low;
}

template <class T>
struct PrefixJob {
  const sk_codes& codes;
  const sk_matrix& w;
  const int64_t* prefixes;
  int64_t count;
  const sk_output& out;
  bool cached;

  // starts: count+1 places; order: the row's length. Both are scratch, as is acc (d).
  void row(int64_t n, int64_t* starts, int64_t* order, float* acc) const {
    const T* values = static_cast<const T*>(codes.values);
    const int64_t begin = row_begin(codes, n), end = row_end(codes, n);
    for (int64_t p = 0; p <= count; ++p) starts[p] = 0;
    for (int64_t slot = begin; slot < end; ++slot) ++starts[bucket_of(codes.indices[slot], prefixes, count)];
    for (int64_t p = 0, place = 0; p <= count; ++p) {
      const int64_t size = starts[p];
      starts[p] = place;
      place += size;
    }
    for (int64_t slot = begin; slot < end; ++slot)
      order[starts[bucket_of(codes.indices[slot], prefixes, count)]++] = slot;
    // now starts[p] is where bucket p ends

    Segment<T> segment;
    for (int64_t p = 0, at = 0; p < count; ++p) {
      do {
        segment.start(acc, p == 0 && at == 0);
        for (; at < starts[p] && segment.count < kSlots; ++at) {
          const int64_t slot = order[at];
          const float value = to_float(values[slot]);
          if (value != 0) segment.add(row_of<T>(w, codes.indices[slot]), value);
        }
        segment.last = false;  // the sum stays in acc
        sum_segment<T, float>(segment, nullptr, w.cols, acc, cached);
      } while (at < starts[p]);
      store_sums(row_of<T>(out, p * codes.n + n), acc, w.cols);
    }
  }
};

sk_status prefix_decode(int32_t dtype, sk_codes codes, sk_matrix w, const int64_t* prefixes, int64_t count,
                        sk_output out, int32_t threads) {
  const sk_status status = check_codes(codes, w.rows);
  if (status.code) return status;
  if (out.rows != count * codes.n || out.cols != w.cols) return failure(SK_BAD_SIZE);
  for (int64_t p = 0; p < count; ++p)
    if (prefixes[p] < 0 || prefixes[p] > w.rows || (p && prefixes[p] <= prefixes[p - 1]))
      return failure(SK_BAD_PREFIX, p, prefixes[p]);
  if (w.cols == 0) return success();
  int64_t longest = codes.offsets ? 0 : codes.k;
  for (int64_t n = 0; codes.offsets && n < codes.n; ++n) {
    const int64_t length = row_end(codes, n) - row_begin(codes, n);
    if (length > longest) longest = length;
  }
  const int64_t pitch = (w.cols + 15) / 16 * 16, places = (longest + count + 1 + 7) / 8 * 8;
  const Scratch<float> acc(pitch * (threads > 1 ? threads : 1));
  const Scratch<int64_t> buckets(places * (threads > 1 ? threads : 1));
  if (!acc.data || !buckets.data) return failure(SK_NO_MEMORY);
  return for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const PrefixJob<T> job{codes, w, prefixes, count, out, is_cached<T>(w)};
    parallel_runs(codes.n, 8, threads, [&](int thread, int64_t begin, int64_t end) {
      int64_t* starts = buckets.data + thread * places;
      for (int64_t n = begin; n < end; ++n) job.row(n, starts, starts + count + 1, acc.data + thread * pitch);
    });
    return success();
  });
}

}  // namespace
