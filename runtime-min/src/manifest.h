/* The manifest (SPEC 2): text to struct. */
#ifndef EB_MANIFEST_H
#define EB_MANIFEST_H

#include "cpu.h"
#include "crypto.h"
#include "status.h"

#define EB_MANIFEST_BYTES_MAX ((size_t)64 << 10)
#define EB_FILES_MAX 256u
#define EB_FILE_BYTES_MAX ((uint64_t)2 << 30)
#define EB_TENSOR_BYTES_MAX ((uint64_t)2 << 30)
/* Each input and output brings a golden file along. */
#define EB_PORTS_MAX EB_FILES_MAX

struct eb_file {
  const char *path;
  uint64_t size;
  uint8_t sha256[EB_SHA256_BYTES];
};

/* An input or output; `bytes` is its size in memory. */
struct eb_port {
  const char *name;
  eb_dtype dtype;
  uint32_t rank;
  uint32_t dim[EB_RANK_MAX];
  uint64_t bytes;
};

/* Strings point into the text that was parsed. */
struct eb_manifest {
  const char *name;
  const char *version;
  const char *target;
  const char *function;
  const char *unknown_need; /* a CPU feature this runtime does not know, or NULL */
  enum eb_arch arch;
  uint64_t needs;
  uint32_t release;
  uint32_t made;    /* as date.h counts; 0: none */
  uint32_t expires; /* the same */
  uint32_t abi;
  uint32_t timeout_ms;
  eb_trigger trigger;
  uint32_t trigger_value;
  bool speed_only;
  bool checked; /* the build machine saw the golden outputs come out */
  uint32_t input_count;
  uint32_t output_count;
  uint32_t file_count;
  struct eb_port input[EB_PORTS_MAX];
  struct eb_port output[EB_PORTS_MAX];
  struct eb_file file[EB_FILES_MAX];
};

/* Parses text[0..size), which must have room for a NUL at text[size]; separators become NULs on the way. */
eb_status eb_manifest_parse(char *text, size_t size, struct eb_manifest *manifest, eb_error *error);

/* A file by its path, or NULL. */
const struct eb_file *eb_manifest_file(const struct eb_manifest *manifest, const char *path);

/* Whether this machine and this runtime can run the release (SPEC 2, step 5). */
eb_status eb_manifest_fits(const struct eb_manifest *manifest, const struct eb_cpu *cpu, eb_error *error);

#endif
