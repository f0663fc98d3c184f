/* The C ABI of sae_kernels' CPU kernels: one table of function pointers, stdint only.
 *
 * Python hands it out as `sae_kernels._cpu.kernels_capsule()`, a capsule named SAE_KERNELS_CAPSULE whose
 * pointer is a `const sk_kernels *` that lives as long as the process. A native plugin needs this header
 * and nothing else (neither libtorch nor nanobind):
 *
 *     const sk_kernels *sk = (const sk_kernels *)PyCapsule_GetPointer(capsule, SAE_KERNELS_CAPSULE);
 *     if (sk->abi != SAE_KERNELS_ABI || SK_LACKS(sk, spmm)) ...  // older host: say so
 *
 * Within one ABI version the table only grows at its end; `size` tells how far this host's reaches.
 *
 * Every kernel checks indices, offsets and rows before it follows them, allocates nothing that outlives the
 * call, gives the same bits for any number of threads, and may be called without the GIL. `threads` below 1
 * counts as 1; in a forked child everything runs on one thread, since OpenMP's pool does not survive a fork.
 */
#ifndef SAE_KERNELS_KERNELS_H
#define SAE_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SAE_KERNELS_ABI 2
#define SAE_KERNELS_CAPSULE "sae_kernels.kernels.v1"
#define SK_LACKS(table, entry) ((table)->size <= offsetof(sk_kernels, entry) || !(table)->entry)

/* Element types of matrices and values; sums are always fp32. */
enum { SK_F32 = 0, SK_BF16 = 1, SK_F16 = 2 };

/* Outcome of a call. `position` is where the offending number lies in its array, `value` what it is. */
enum {
  SK_OK = 0,
  SK_NO_MEMORY = 1,
  SK_BAD_DTYPE = 2,        /* value: the dtype */
  SK_BAD_SIZE = 3,         /* sizes that contradict each other */
  SK_BAD_INDEX = 4,        /* indices[position] = value lies outside [0, number of latents) */
  SK_BAD_OFFSET = 5,       /* offsets[position] = value: they must rise from 0 to nnz */
  SK_BAD_ROW = 6,          /* rows[position] = value lies outside the matrix */
  SK_DUPLICATE_ROW = 7,    /* rows[position] = value was listed before */
  SK_BAD_STEP = 8,         /* last_step[position] = value lies outside [0, step] */
  SK_BAD_PREFIX = 9        /* prefixes[position] = value: they must rise strictly, within [0, latents] */
};
typedef struct { int32_t code; int32_t reserved; int64_t position, value; } sk_status;

/* Sparse codes of n rows. Fixed width: offsets is NULL, row r is slots [r*k, r*k + k) and nnz = n*k.
 * Ragged: row r is slots [offsets[r], offsets[r+1]). A slot whose value is 0 is empty: it adds nothing, not
 * even 0*inf. Arrays are contiguous. `values` may be NULL where an op does not read it. */
typedef struct {
  const void *values;
  const int32_t *indices;
  const int64_t *offsets;
  int64_t n, k, nnz;
} sk_codes;

/* Row-major matrices: `stride` elements from one row to the next, 1 from one column to the next. */
typedef struct { const void *data; int64_t rows, cols, stride; } sk_matrix;
typedef struct { void *data; int64_t rows, cols, stride; } sk_output;

/* adam_rows. rows NULL: every row. last_step NULL: nothing to replay; else row r first replays steps
 * last_step[r]+1 .. step-1 with a zero gradient. grad.data NULL: the step itself has a zero gradient too.
 * lrs[t-1] is the learning rate of step t. grad is (M, d), or (number of rows, d) where rows is given. */
typedef struct {
  sk_output param, exp_avg, exp_avg_sq; /* (M, d): T, fp32, fp32 */
  sk_matrix grad;                       /* T */
  const int32_t *rows;
  int64_t *last_step;                   /* (M,) */
  const double *lrs;
  int64_t row_count, lr_count, step;
  double beta1, beta2, eps;
  int32_t unit_norm, remove_parallel;
} sk_adam;

/* linear_topk's state for n rows: candidates still in play. keys and index have running_topk_room(k) entries a row, count and
 * bound one. The fold whose `first` is 0 starts it: nothing needs clearing. */
typedef struct { int32_t *keys, *index, *count, *bound; int64_t n, k; } sk_running_topk;

/* linear_batch_topk's state. keys, rows and index have `room` >= batch_topk_room(keep, widest chunk) entries. Starts with count 0
 * and bound {INT32_MIN, INT32_MAX}. */
typedef struct { int32_t *keys, *rows, *index, *bound; int64_t *count, keep, room; } sk_batch_topk;

/* The state of linear_topk from screening scores: candidates between two bounds. upper, lower and index have `room` >=
 * screened_topk_room(k) entries a row, count and bound one; `computed` is one number, which every exact computation of a score
 * adds 1 to. The fold whose `first` is 0 starts all but `computed`. */
typedef struct { int32_t *upper, *lower, *index, *count, *bound; int64_t *computed, n, k, room; } sk_screened_topk;

/* The same for linear_batch_topk. upper, lower, rows and index have `room` >= screened_batch_room(keep, widest chunk) entries.
 * Starts with count and computed 0 and bound INT32_MIN. */
typedef struct { int32_t *upper, *lower, *rows, *index, *bound; int64_t *count, *computed, keep, room; } sk_screened_batch;

/* What screen_round found: of x's rows (n,), and of a chunk of W's rows (cols,). */
typedef struct { const float *x, *x_dropped, *W, *W_dropped; } sk_norms;

/* One selection of few_topk: k latents a token among those whose byte of `among` (W.rows,) is not 0, NULL: all; values and
 * indices (x.rows, k) as in running_topk_finish. */
typedef struct { int64_t k; const uint8_t *among; void *values; int32_t *indices; int32_t relu; } sk_selection;

/* W as screen_round rounded it: rows in bf16, next to each other, and their norms. rows NULL: there is none. `dots`: products
 * may be made by instructions for bf16, where they are fast. */
typedef struct { const void *rows; const float *norms, *dropped; int32_t dots; } sk_rounded;

/* What few_* tell of a call in an SK_OK status' position. */
enum {
  SK_SCREENED = 1,     /* by the copy of W */
  SK_CONTRADICTED = 2, /* a score was not what the copy says: it is no copy of this W. Results are without it */
  SK_GIVEN_UP = 4      /* the copy decided too little. Results are without it */
};

/* Tokens and latents as integer_tokens and integer_latents left them; the tokens' numbers are scale, norm, rest and unseen, the latents'
 * scale, offset, norm, spread and rest. `first` is the first latent's number, `count` how many there are. */
typedef struct { const void *packed; const float *scale, *norm, *rest, *unseen; const int32_t *start; int64_t n; } sk_integer_tokens;
typedef struct {
  const void *packed;
  const float *scale, *offset, *norm, *spread, *rest;
  int64_t first, count;
} sk_integer_latents;

typedef struct sk_kernels {
  int32_t abi;     /* SAE_KERNELS_ABI */
  int32_t size;    /* sizeof(sk_kernels) of the host */
  const char *isa; /* "baseline", "avx2", "avx512", "amx" */

  /* out (n, d) = codes @ w */
  sk_status (*spmm)(int32_t dtype, sk_codes codes, sk_matrix w, sk_output out, int32_t threads);
  /* out (m, d) = codes^T @ x; latents that nothing uses become 0 */
  sk_status (*spmm_t)(int32_t dtype, sk_codes codes, sk_matrix x, sk_output out, int32_t threads);
  /* out[slot] = a[row] . b[index]; 0 where gate (NULL: everywhere open) is 0, untouched memory there */
  sk_status (*sddmm)(int32_t dtype, sk_matrix a, sk_matrix b, sk_codes codes, const void *gate, void *out,
                     int32_t threads);
  /* stable sort by latent: latent_offsets (m+1,), order (nnz,) flat slots, rows (nnz,) their rows */
  sk_status (*transpose)(sk_codes codes, int64_t m, int64_t *latent_offsets, int64_t *order, int32_t *rows,
                         int32_t threads);
  /* out (count*n, d): rows [p*n, p*n + n) = the codes whose index < prefixes[p], @ w */
  sk_status (*prefix_decode)(int32_t dtype, sk_codes codes, sk_matrix w, const int64_t *prefixes, int64_t count,
                             sk_output out, int32_t threads);
  sk_status (*adam_rows)(int32_t dtype, const sk_adam *job, int32_t threads);
  /* keeps per latent the n best (value, then smaller token), sorted; unused entries are (-inf, -1).
   * best_values (m, best) fp32 and best_tokens (m, best) int64 are contiguous; row r is token first_token+r */
  sk_status (*latent_topn)(int32_t dtype, sk_codes codes, int64_t m, int64_t best, float *best_values,
                           int64_t *best_tokens, int64_t first_token, int32_t threads);

  /* Selection. NaN ranks first, -0 equals +0, ties go to the smaller index; indices ascend within a row.
   * Chunks of pre-acts are fp32 matrices; bias, where not NULL, is added as they are read; `first` is a chunk's first latent. */

  /* values, indices (n, k) = the k largest of each row of scores */
  sk_status (*topk)(int32_t dtype, sk_matrix scores, int64_t k, void *values, int32_t *indices, int32_t threads);
  int64_t (*running_topk_room)(int64_t k);
  /* folds in a chunk; chunks come ascending by latent. among (cols,), where not NULL: latents with 0 cannot be chosen */
  sk_status (*running_topk_fold)(sk_running_topk state, sk_matrix scores, const float *bias, const uint8_t *among,
                                 int64_t first, int32_t threads);
  /* values, indices (n, k); slots for which there was no candidate are value 0, index 0 */
  sk_status (*running_topk_finish)(int32_t dtype, sk_running_topk state, int32_t relu, void *values, int32_t *indices,
                                   int32_t threads);
  /* counts (rows,) = how many of each row are not <= theta; theta_step 0: one theta for all, 1: one per column */
  sk_status (*threshold_count)(sk_matrix scores, const float *bias, const float *theta, int64_t theta_step,
                               int64_t *counts, int32_t threads);
  /* writes them: row r's go to values and indices from starts[r] on */
  sk_status (*threshold_fill)(int32_t dtype, sk_matrix scores, const float *bias, const float *theta, int64_t theta_step,
                              int64_t first, const int64_t *starts, void *values, int32_t *indices, int32_t threads);
  /* copies counts[r] values and indices of each row r, from[r] on, to to[r] on */
  sk_status (*place_rows)(int32_t dtype, int64_t rows, const int64_t *counts, const int64_t *from, const void *values,
                          const int32_t *indices, const int64_t *to, void *out_values, int32_t *out_indices,
                          int32_t threads);
  int64_t (*batch_topk_room)(int64_t keep, int64_t cols);
  /* folds in a chunk of rows first_row, first_row + 1, ...; chunks of one row come ascending by latent */
  sk_status (*batch_topk_fold)(sk_batch_topk state, sk_matrix scores, const float *bias, int64_t first_row, int64_t first,
                               int32_t threads);
  /* offsets (n+1,), values and indices (keep,) */
  sk_status (*batch_topk_finish)(int32_t dtype, sk_batch_topk state, int64_t n, int32_t relu, int64_t *offsets,
                                 void *values, int32_t *indices, int32_t threads);

  /* Screening: scores from inputs rounded to bf16 bound the exact ones (csrc/screen/bound.inl.h). W's first row is latent W_first.
   * Where W does not hold all latents, `settle` follows each chunk's folds, while W still covers it. */

  /* rounded (rows, cols) = a in bf16, NULL where it is already; norms and dropped (rows,): the norms of a's rows, and of what
   * rounding dropped */
  sk_status (*screen_round)(int32_t dtype, sk_matrix a, void *rounded, float *norms, float *dropped, int32_t threads);
  int64_t (*screened_topk_room)(int64_t k);
  /* scores (n, cols) bf16: of x's n rows and W's rows first, first + 1, ... as screen_round rounds them, with those rows' norms;
   * x and W as they are; bias of all latents or NULL; among (cols,) as in running_topk_fold */
  sk_status (*screened_topk_fold)(int32_t dtype, sk_screened_topk state, sk_matrix scores, sk_matrix x, sk_matrix W,
                                  int64_t W_first, sk_norms norms, const float *bias, const uint8_t *among, int64_t first,
                                  int32_t threads);
  /* computes what the chunks since the last call left */
  sk_status (*screened_topk_settle)(int32_t dtype, sk_screened_topk state, sk_matrix x, sk_matrix W, int64_t W_first,
                                    const float *bias, int32_t threads);
  /* as running_topk_finish, of the scores x . W + bias summed in fp32 */
  sk_status (*screened_topk_finish)(int32_t dtype, sk_screened_topk state, sk_matrix x, sk_matrix W, const float *bias,
                                    int32_t relu, void *values, int32_t *indices, int32_t threads);
  /* counts (rows,) = how many of each row may not be <= theta; x and W have d columns; bias and theta are the chunk's */
  sk_status (*screened_threshold_count)(sk_matrix scores, int64_t d, sk_norms norms, const float *bias, const float *theta,
                                        int64_t theta_step, int64_t *counts, int32_t threads);
  /* writes those that are not, computed in fp32: row r's from starts[r] on; counts[r] becomes their number. theta is the chunk's,
   * bias of all latents or NULL */
  sk_status (*screened_threshold_fill)(int32_t dtype, sk_matrix scores, sk_matrix x, sk_matrix W, int64_t W_first, sk_norms norms,
                                       const float *bias, const float *theta, int64_t theta_step, int64_t first,
                                       const int64_t *starts, int64_t *counts, void *values, int32_t *indices,
                                       int32_t threads);
  int64_t (*screened_batch_room)(int64_t keep, int64_t cols);
  /* scores and norms of x's rows first_row, first_row + 1, ...; chunks of one row come ascending by latent */
  sk_status (*screened_batch_fold)(int32_t dtype, sk_screened_batch state, sk_matrix scores, sk_matrix x, sk_matrix W,
                                   int64_t W_first, sk_norms norms, const float *bias, int64_t first_row, int64_t first,
                                   int32_t threads);
  sk_status (*screened_batch_settle)(int32_t dtype, sk_screened_batch state, sk_matrix x, sk_matrix W, int64_t W_first,
                                     const float *bias, int32_t threads);
  /* as batch_topk_finish, of the scores x . W + bias summed in fp32 */
  sk_status (*screened_batch_finish)(int32_t dtype, sk_screened_batch state, sk_matrix x, sk_matrix W, const float *bias,
                                     int32_t relu, int64_t *offsets, void *values, int32_t *indices, int32_t threads);

  /* A few tokens, in one call: scores x . W + bias (W.rows,) summed in fp32, the same whether screened or not; products have
   * the bits of sddmm, but in bf16, where its order is another. bias is of the dtype, or NULL. Scratch: some KB a token and
   * thread, and 16 bytes for each candidate. */

  sk_status (*few_topk)(int32_t dtype, sk_matrix x, sk_matrix W, const void *bias, sk_rounded copy,
                        const sk_selection *selections, int64_t count, int32_t threads);
  /* keeps what is not <= theta[latent * theta_step]; offsets (x.rows+1,). values and indices (room,) are written where there is
   * room for all */
  sk_status (*few_threshold)(int32_t dtype, sk_matrix x, sk_matrix W, const void *bias, sk_rounded copy, const float *theta,
                             int64_t theta_step, int64_t room, int64_t *offsets, void *values, int32_t *indices,
                             int32_t threads);
  /* position: 1 where some of 16 columns of a's rows first_row, first_row + step, ... are not what `rounded` (a.rows, a.cols)
   * says, else 0; columns first_col, first_col + 1, ... */
  sk_status (*screen_differs)(int32_t dtype, sk_matrix a, const void *rounded, int64_t first_row, int64_t step,
                              int64_t first_col, int32_t threads);

  /* both gradients of out = spmm(codes, w), where g = d/d out: d_values[slot] = g[row] . w[index], 0 at empty slots, and
   * dw (m, d) = codes^T @ g */
  sk_status (*spmm_backward)(int32_t dtype, sk_matrix g, sk_codes codes, sk_matrix w, void *d_values, sk_output dw,
                             int32_t threads);

  /* Screening by products of integers (csrc/screen/integer_topk.inl.h), of 8 or 16 `bits`. Tables of "avx512" and "amx" take VNNI
   * for granted here; those of "baseline" and "avx2" have no fast products of 8 bits. */

  /* bytes a row takes in both of what follows */
  int64_t (*integer_width)(int32_t bits, int64_t d);
  /* packed (latents in whole groups of 32, width) and numbers (5, latents in whole groups) of a's rows */
  sk_status (*integer_latents)(int32_t dtype, int32_t bits, sk_matrix a, uint8_t *packed, float *numbers, int32_t threads);
  /* packed (a.rows + 31, width rounded up to a multiple of 64) bytes, numbers (4, a.rows) and starts (a.rows,); how rows lie
   * in `packed` is this table's own affair */
  sk_status (*integer_tokens)(int32_t dtype, int32_t bits, sk_matrix a, uint8_t *packed, float *numbers, int32_t *starts,
                              int32_t threads);
  /* state.n = parts * x.rows; several parts: all latents in one call. widths 0: bounds hold for certain; with 8 bits, else, how
   * many standard deviations count. A row that its bounds do not settle gets a negative count */
  sk_status (*integer_topk_fold)(int32_t dtype, int32_t bits, sk_screened_topk state, int64_t parts,
                                 sk_integer_tokens tokens, sk_integer_latents latents, sk_matrix x, sk_matrix W,
                                 const float *bias, const uint8_t *among, float widths, int32_t threads);
  /* as screened_topk_finish; failed (x.rows,) = 1 where a row was not settled, 2 where a score was not what `latents`
   * says: these rows are not written */
  sk_status (*integer_topk_finish)(int32_t dtype, sk_screened_topk state, int64_t parts, sk_matrix x, sk_matrix W,
                                   const float *bias, int32_t relu, void *values, int32_t *indices, uint8_t *failed,
                                   int32_t threads);
  /* scores (tokens.n, latents.count) bf16 for the screened_* of above, of latents `first` onwards; with norms = the tokens' norm
   * and rest, the latents' norm and rest from `first` on, what bounds those of bfloat16 products bounds these for certain */
  sk_status (*integer_scores)(int32_t bits, sk_integer_tokens tokens, sk_integer_latents latents, int64_t d,
                              sk_output scores, int32_t threads);
  /* out (a.cols, a.rows), rows next to each other = a's columns */
  sk_status (*columns)(int32_t dtype, sk_matrix a, void *out, int32_t threads);
} sk_kernels;

#ifdef __cplusplus
}
#endif
#endif
