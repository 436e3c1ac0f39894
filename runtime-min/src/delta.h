/* A delta (SPEC 12): one release's files from those of another, front to back, in bounded memory. */
#ifndef EB_DELTA_H
#define EB_DELTA_H

#include "coded.h"
#include "crypto.h"
#include "manifest.h"
#include "minisign.h"

#define EB_DELTA_MAGIC "EBD1"
#define EB_DELTA_BUFFER ((size_t)32 << 10)
#define EB_DELTA_PREFIX_MAX ((uint64_t)1 << 20) /* an old file that zstd looks back into */
#define EB_DELTA_PLANS_MAX ((uint64_t)1 << 20)  /* of both releases, or of the one where they are the same */

enum eb_codec { EB_CODEC_SAME, EB_CODEC_RAW, EB_CODEC_ZSTD, EB_CODEC_ZSTD_OLD, EB_CODEC_WEIGHTS, EB_CODEC_PATCH };

struct eb_delta {
  const eb_feed *feed;
  void *memory; /* eb_delta_memory() bytes, aligned to 64 */
  uint8_t base[EB_SHA256_BYTES];
  uint32_t manifest_size, signature_size, head_size;
  uint64_t left; /* of the current part */
  size_t begin, end;
  eb_error *error; /* where a callback leaves what went wrong */
  uint8_t buffer[EB_DELTA_BUFFER];
};

/* The base's file of the same path, and where the new file goes. */
struct eb_delta_file {
  const char *path;
  uint64_t size;
  bool has_old;
  uint64_t old_size;
  eb_bytes plan, old_plan; /* of both releases; for weights.bin only */
  bool (*get_old)(void *context, uint64_t offset, void *data, size_t size, eb_error *error);
  bool (*put)(void *context, const void *data, size_t size, eb_error *error);
  void *context;
};

/* About 6 MiB. */
size_t eb_delta_memory(void);

/* Up to the sizes of the head: `delta->base` is the manifest's SHA-256 of the release that it needs. */
eb_status eb_delta_open(struct eb_delta *delta, const eb_feed *feed, void *memory, eb_error *error);

/* The new release's manifest and signature, into delta->manifest_size and delta->signature_size bytes. Nothing of them
 * is verified yet. */
eb_status eb_delta_head(struct eb_delta *delta, eb_bytes base_manifest, eb_bytes base_signature, void *manifest,
                        void *signature, eb_error *error);

/* The next file's part begins. After EB_CODEC_SAME there is nothing to decode. */
eb_status eb_delta_next(struct eb_delta *delta, enum eb_codec *codec, eb_error *error);

/* Decodes it: file->size bytes are put, or it fails. The caller compares their SHA-256. */
eb_status eb_delta_decode(struct eb_delta *delta, enum eb_codec codec, const struct eb_delta_file *file,
                          eb_error *error);

/* Passes over the part: the file is there already. */
eb_status eb_delta_skip(struct eb_delta *delta, eb_error *error);

/* There is nothing behind the last part. */
eb_status eb_delta_end(struct eb_delta *delta, eb_error *error);

#endif
