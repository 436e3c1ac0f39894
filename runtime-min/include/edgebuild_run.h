/* edgebuild-run as a library: loads a verified bundle and runs it.
 *
 * The caller does all I/O and owns the bytes of the trust file. Nothing here prints, exits, or calls an allocator
 * after eb_load. Not thread-safe: one caller at a time for each model.
 */
#ifndef EDGEBUILD_RUN_H
#define EDGEBUILD_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EB_ABI 1u
#define EB_RANK_MAX 6u
#define EB_THREADS_MAX 64u

/* Also the exit codes of the program edgebuild-run. */
typedef enum eb_status {
  EB_OK = 0,
  EB_INPUT = 1,       /* an argument or input data is wrong */
  EB_REFUSED = 2,     /* the bundle, its signature, the trust file or the plan is not acceptable */
  EB_CHECK = 3,       /* the golden outputs are not reproduced */
  EB_UNSUPPORTED = 4, /* this machine or this runtime cannot run the bundle */
  EB_IO = 5,          /* reading or writing failed */
  EB_MEMORY = 6,      /* not enough memory or threads */
} eb_status;

/* What was wrong, and what to do about it; both end with NUL, `hint` may be empty. */
typedef struct eb_error {
  eb_status status;
  char message[384];
  char hint[192];
} eb_error;

typedef struct eb_bytes {
  const void *data;
  size_t size;
} eb_bytes;

/* Where the bytes of a bundle come from, front to back. */
typedef struct eb_feed {
  /* Puts up to `size` bytes into `data`; returns how many, 0 at the end, or a negative errno. */
  ssize_t (*read)(void *context, void *data, size_t size);
  /* Passes over `size` bytes; 0, a negative errno, or 1: it cannot, read them. May be NULL. */
  int (*skip)(void *context, uint64_t size);
  void *context;
} eb_feed;

/* Where the files of a release are when they do not follow its head (manifest and signature) in one archive. */
typedef struct eb_files {
  /* A feed of the file with this SHA-256, which is computed and compared by the reader. `path` is for messages. */
  eb_status (*open)(void *context, const char *path, uint64_t size, const uint8_t sha256[32], eb_feed *feed,
                    eb_error *error);
  void (*close)(void *context, eb_feed *feed);
  void *context;
  const char *id; /* the SHA-256, in hexadecimal, that the manifest must have */
} eb_files;

/* The codes of plan.bin (SPEC 5). */
typedef enum eb_dtype { EB_U8, EB_I8, EB_I32, EB_I64, EB_F32, EB_BOOL, EB_I16 } eb_dtype;

/* An input or output of a model. `data` holds `bytes` bytes in row-major order and stays valid until eb_free. */
typedef struct eb_tensor {
  const char *name;
  eb_dtype dtype;
  uint32_t rank;
  uint32_t dim[EB_RANK_MAX];
  size_t bytes;
  void *data;
} eb_tensor;

typedef enum eb_trigger { EB_TRIGGER_NONE, EB_TRIGGER_CAMERA, EB_TRIGGER_TIMER } eb_trigger;

/* What the manifest says (SPEC 2); strings stay valid until eb_free. */
typedef struct eb_info {
  const char *name;
  const char *version;
  const char *target;
  const char *function;
  char signer[17]; /* key id, hexadecimal, as minisign prints it */
  char id[65];     /* SHA-256 of the manifest */
  uint32_t release;
  uint32_t made;       /* year * 10000 + month * 100 + day, UTC; 0: the manifest does not say */
  uint32_t expires;    /* the same */
  uint32_t timeout_ms; /* 0: none */
  eb_trigger trigger;
  uint32_t trigger_value; /* camera: frames per second; timer: milliseconds */
  bool speed_only;
  bool checked; /* false: no machine has run it yet; compare its golden samples before the first result counts */
  uint32_t file_count;
} eb_info;

/* One operator of the plan. */
typedef struct eb_op {
  const char *name;
  const char *kind;
  uint64_t macs;
} eb_op;

typedef struct eb_model eb_model;

/* Verifies a bundle against the keys of `trust` (SPEC 2, steps 1 to 5) and keeps nothing of its files: of the model
 * that it makes only eb_model_info and eb_free may be used. `files` is NULL, or where the files of the release are whose
 * head alone is in `bundle`. */
eb_status eb_verify(const eb_feed *bundle, const eb_files *files, eb_bytes trust, eb_model **model, eb_error *error);

/* Verifies a bundle, then loads it with `threads` threads (1..EB_THREADS_MAX, the caller's included). What the model
 * needs of it lies in memory of its own; `golden`: its golden samples too, and without that only those of a bundle that
 * was not checked. */
eb_status eb_load(const eb_feed *bundle, const eb_files *files, eb_bytes trust, uint32_t threads, bool golden,
                  eb_model **model, eb_error *error);

const eb_info *eb_model_info(const eb_model *model);

uint32_t eb_input_count(const eb_model *model);
uint32_t eb_output_count(const eb_model *model);

/* NULL when `index` is out of range. Write an input's data before eb_run, read an output's data after it. */
const eb_tensor *eb_input(const eb_model *model, uint32_t index);
const eb_tensor *eb_output(const eb_model *model, uint32_t index);

/* A golden sample by its path, e.g. "golden/in-0.npy"; {NULL, 0} when it was not kept. */
eb_bytes eb_file(const eb_model *model, const char *path);

/* Gives the memory of the golden samples back. */
void eb_drop_golden(eb_model *model);

/* Runs the model once, in the default floating-point environment. */
void eb_run(eb_model *model);

/* The same with all threads, and writes the time of each operator in nanoseconds to `nanoseconds[eb_op_count]`. */
void eb_run_profiled(eb_model *model, uint64_t *nanoseconds);

uint32_t eb_op_count(const eb_model *model);
eb_op eb_op_at(const eb_model *model, uint32_t index);

/* Ends the threads and frees everything that eb_load made. NULL is allowed. */
void eb_free(eb_model *model);

/* "refused" for EB_REFUSED, and so on. */
const char *eb_status_name(eb_status status);
const char *eb_dtype_name(eb_dtype dtype);
size_t eb_dtype_size(eb_dtype dtype);

#ifdef __cplusplus
}
#endif

#endif
