#include "delta.h"

#include <string.h>

#include "unzstd.h"

#define PIECE ((size_t)64 << 10)

static const char remake[] = "get the delta again from its source, or install the whole bundle";

/* What a codec needs, one at a time. */
struct memory {
  union {
    struct {
      struct eb_unzstd unzstd;
      uint8_t prefix[EB_DELTA_PREFIX_MAX];
      uint8_t piece[PIECE];
    } zstd;
    uint8_t piece[PIECE];
  } at;
};

static size_t most(size_t a, size_t b) {
  return a > b ? a : b;
}

size_t eb_delta_memory(void) {
  return most(sizeof(struct memory), most(eb_coded_weights_memory(), eb_coded_patch_memory()));
}

static eb_status malformed(eb_error *error, const char *what) {
  return eb_fail(error, EB_REFUSED, remake, "the delta is malformed: %s", what);
}

static eb_status fill(struct eb_delta *delta, eb_error *error) {
  ssize_t got = delta->feed->read(delta->feed->context, delta->buffer, sizeof delta->buffer);
  delta->begin = 0;
  delta->end = got > 0 ? (size_t)got : 0;
  if (got >= 0) return EB_OK;
  return eb_fail(error, EB_IO, "get the file again from its source", "cannot read the delta: %s", strerror((int)-got));
}

/* Up to `size` bytes that lie in the buffer; none only at the end. */
static eb_status take(struct eb_delta *delta, size_t size, eb_bytes *bytes, eb_error *error) {
  if (delta->begin == delta->end) {
    eb_status status = fill(delta, error);
    if (status) return status;
  }
  size_t count = delta->end - delta->begin;
  if (count > size) count = size;
  *bytes = (eb_bytes){delta->buffer + delta->begin, count};
  delta->begin += count;
  return EB_OK;
}

static eb_status read_all(struct eb_delta *delta, void *data, size_t size, eb_error *error) {
  for (uint8_t *at = data; size;) {
    eb_bytes bytes;
    eb_status status = take(delta, size, &bytes, error);
    if (status) return status;
    if (!bytes.size) return eb_fail(error, EB_REFUSED, remake, "the delta is cut off");
    memcpy(at, bytes.data, bytes.size);
    at += bytes.size;
    size -= bytes.size;
  }
  return EB_OK;
}

static uint32_t number(const uint8_t *bytes, unsigned count) {
  uint32_t value = 0;
  for (unsigned i = 0; i < count; i++) value |= (uint32_t)bytes[i] << (8 * i);
  return value;
}

eb_status eb_delta_open(struct eb_delta *delta, const eb_feed *feed, void *memory, eb_error *error) {
  uint8_t head[4 + EB_SHA256_BYTES + 8];
  memset(delta, 0, sizeof *delta);
  delta->feed = feed;
  delta->memory = memory;
  eb_status status = read_all(delta, head, sizeof head, error);
  if (status) return status;
  if (memcmp(head, EB_DELTA_MAGIC, 4) != 0) {
    return eb_fail(error, EB_REFUSED, "give a file that edgebuild delta wrote", "this is not a delta");
  }
  memcpy(delta->base, head + 4, sizeof delta->base);
  const uint8_t *sizes = head + 4 + EB_SHA256_BYTES;
  delta->manifest_size = number(sizes, 2);
  delta->signature_size = number(sizes + 2, 2);
  delta->head_size = number(sizes + 4, 4);
  if (!delta->manifest_size || !delta->signature_size || delta->signature_size > EB_SIGNATURE_BYTES_MAX ||
      delta->head_size > 80u << 10) {
    return malformed(error, "its sizes");
  }
  return EB_OK;
}

/* The next bytes of the current part, for the decoders. */
static eb_status take_part(struct eb_delta *delta, eb_bytes *bytes, eb_error *error) {
  *bytes = (eb_bytes){NULL, 0};
  if (!delta->left) return EB_OK;
  eb_status status = take(delta, delta->left < SIZE_MAX ? (size_t)delta->left : SIZE_MAX, bytes, error);
  if (!status && !bytes->size) status = eb_fail(error, EB_REFUSED, remake, "the delta is cut off");
  delta->left -= bytes->size;
  return status;
}

/* One zstd frame that is the whole part, into a sink of exactly `size` bytes. */
static eb_status unzstd(struct eb_delta *delta, eb_bytes prefix, uint64_t size,
                        bool (*sink)(void *context, const void *data, size_t size, eb_error *error), void *context,
                        eb_error *error) {
  struct memory *memory = delta->memory;
  if (!eb_unzstd_open(&memory->at.zstd.unzstd, prefix)) return malformed(error, "zstd");
  bool ended = false;
  while (!ended) {
    eb_bytes bytes;
    eb_status status = take_part(delta, &bytes, error);
    if (status) return status;
    if (!bytes.size) return malformed(error, "a zstd frame is cut off");
    while (bytes.size && !ended) {
      size_t made = PIECE;
      if (!eb_unzstd_run(&memory->at.zstd.unzstd, &bytes, memory->at.zstd.piece, &made, &ended) || made > size) {
        return malformed(error, "a zstd frame");
      }
      size -= made;
      if (made && !sink(context, memory->at.zstd.piece, made, error)) return error->status;
    }
    if (bytes.size) return malformed(error, "bytes behind a zstd frame");
  }
  return size || delta->left ? malformed(error, "a size") : EB_OK;
}

struct head_sink {
  uint8_t *manifest, *signature;
  size_t manifest_left, signature_left;
};

static bool put_head(void *context, const void *data, size_t size, eb_error *error) {
  (void)error;
  struct head_sink *sink = context;
  size_t first = size < sink->manifest_left ? size : sink->manifest_left;
  memcpy(sink->manifest, data, first);
  sink->manifest += first;
  sink->manifest_left -= first;
  memcpy(sink->signature, (const uint8_t *)data + first, size - first);
  sink->signature += size - first;
  return true;
}

eb_status eb_delta_head(struct eb_delta *delta, eb_bytes base_manifest, eb_bytes base_signature, void *manifest,
                        void *signature, eb_error *error) {
  struct memory *memory = delta->memory;
  struct head_sink sink = {manifest, signature, delta->manifest_size, delta->signature_size};
  if (base_manifest.size > EB_MANIFEST_BYTES_MAX || base_signature.size > EB_SIGNATURE_BYTES_MAX) {
    return malformed(error, "the base's head");
  }
  memcpy(memory->at.zstd.prefix, base_manifest.data, base_manifest.size);
  memcpy(memory->at.zstd.prefix + base_manifest.size, base_signature.data, base_signature.size);
  eb_bytes prefix = {memory->at.zstd.prefix, base_manifest.size + base_signature.size};
  delta->left = delta->head_size;
  return unzstd(delta, prefix, (uint64_t)delta->manifest_size + delta->signature_size, put_head, &sink, error);
}

eb_status eb_delta_next(struct eb_delta *delta, enum eb_codec *codec, eb_error *error) {
  uint8_t head[5];
  eb_status status = read_all(delta, head, 1, error);
  if (status) return status;
  if (head[0] > EB_CODEC_PATCH) {
    return eb_fail(error, EB_UNSUPPORTED, "install a newer edgebuild-run, or the whole bundle",
                   "the delta uses codec %u, which this runtime does not know", head[0]);
  }
  *codec = (enum eb_codec)head[0];
  delta->left = 0;
  if (*codec == EB_CODEC_SAME) return EB_OK;
  status = read_all(delta, head + 1, 4, error);
  delta->left = number(head + 1, 4);
  return status;
}

static eb_status decode_raw(struct eb_delta *delta, const struct eb_delta_file *file, eb_error *error) {
  if (delta->left != file->size) return malformed(error, "the size of a raw file");
  while (delta->left) {
    eb_bytes bytes;
    eb_status status = take_part(delta, &bytes, error);
    if (status) return status;
    if (!file->put(file->context, bytes.data, bytes.size, error)) return error->status;
  }
  return EB_OK;
}

static eb_status decode_zstd(struct eb_delta *delta, const struct eb_delta_file *file, bool with_old, eb_error *error) {
  struct memory *memory = delta->memory;
  eb_bytes prefix = {NULL, 0};
  if (with_old) {
    if (file->old_size > EB_DELTA_PREFIX_MAX) return malformed(error, "zstd against an old file that is too large");
    prefix = (eb_bytes){memory->at.zstd.prefix, (size_t)file->old_size};
    if (!file->get_old(file->context, 0, memory->at.zstd.prefix, prefix.size, error)) return error->status;
  }
  return unzstd(delta, prefix, file->size, file->put, file->context, error);
}

/* A byte for the range decoder. A feed that fails looks like the end of the part, and `delta->error` remembers. */
static int next_byte(void *context) {
  struct eb_delta *delta = context;
  eb_bytes bytes;
  if (!delta->left) return -1;
  if (delta->begin == delta->end && fill(delta, delta->error)) return -1;
  eb_status status = take(delta, 1, &bytes, delta->error);
  if (status || !bytes.size) return -1;
  delta->left--;
  return *(const uint8_t *)bytes.data;
}

/* Both releases have the same tensors in weights.bin. */
static bool same_layout(const struct eb_plan *a, const struct eb_plan *b) {
  if (a->tensor_count != b->tensor_count || a->weights_bytes != b->weights_bytes) return false;
  for (uint32_t i = 0; i < a->tensor_count; i++) {
    struct eb_plan_tensor left = eb_plan_tensor(a, i), right = eb_plan_tensor(b, i);
    if (left.in_weights != right.in_weights) return false;
    if (!left.in_weights) continue;
    if (left.dtype != right.dtype || left.offset != right.offset || left.bytes != right.bytes) return false;
  }
  return true;
}

static eb_status open_plans(const struct eb_delta_file *file, struct eb_plan *plan, eb_error *error) {
  struct eb_plan old;
  if (strcmp(file->path, "weights.bin") != 0 || file->size != file->old_size) {
    return malformed(error, "the codec of weights for another file");
  }
  eb_status status = eb_plan_open(plan, file->plan, file->size, error);
  if (!status) status = eb_plan_open(&old, file->old_plan, file->old_size, error);
  if (status || same_layout(plan, &old)) return status;
  return malformed(error, "weights of another layout");
}

/* A file that is being decoded. */
struct decoding {
  const struct eb_delta_file *file;
  struct eb_range_decoder decoder;
};

static bool get_decoding(void *context, uint64_t offset, void *data, size_t size, eb_error *error) {
  const struct eb_delta_file *file = ((struct decoding *)context)->file;
  return file->get_old(file->context, offset, data, size, error);
}

/* Behind the end of the code there are only zeros: what they would make, up to a whole file, is not waited for. */
static bool put_decoding(void *context, const void *data, size_t size, eb_error *error) {
  const struct decoding *decoding = context;
  if (decoding->decoder.missing > 4) {
    malformed(error, "the size of a coded file");
    return false;
  }
  return decoding->file->put(decoding->file->context, data, size, error);
}

static eb_status decode_coded(struct eb_delta *delta, enum eb_codec codec, const struct eb_delta_file *file,
                              eb_error *error) {
  struct decoding decoding = {.file = file};
  struct eb_coded_io io = {.get_old = get_decoding, .put = put_decoding, .context = &decoding};
  struct eb_plan plan;
  eb_status status = codec == EB_CODEC_WEIGHTS ? open_plans(file, &plan, error) : EB_OK;
  if (status) return status;
  eb_error feed_error = {0};
  delta->error = &feed_error;
  eb_range_decoder_open(&decoding.decoder, next_byte, delta);
  struct eb_bit_coder coder = {eb_range_decode, &decoding.decoder};
  status = codec == EB_CODEC_WEIGHTS
               ? eb_coded_weights(delta->memory, coder, &plan, &io, error)
               : eb_coded_patch(delta->memory, coder, file->old_size, file->size, NULL, &io, error);
  if (feed_error.status) {
    *error = feed_error;
    return feed_error.status;
  }
  if (!status && (delta->left || decoding.decoder.missing > 4)) status = malformed(error, "the size of a coded file");
  return status;
}

eb_status eb_delta_decode(struct eb_delta *delta, enum eb_codec codec, const struct eb_delta_file *file,
                          eb_error *error) {
  bool needs_old = codec >= EB_CODEC_ZSTD_OLD;
  if (needs_old && !file->has_old) return malformed(error, "it codes a file against one that the base does not have");
  switch (codec) {
    case EB_CODEC_RAW:
      return decode_raw(delta, file, error);
    case EB_CODEC_ZSTD:
    case EB_CODEC_ZSTD_OLD:
      return decode_zstd(delta, file, needs_old, error);
    case EB_CODEC_WEIGHTS:
    case EB_CODEC_PATCH:
      return decode_coded(delta, codec, file, error);
    default:
      return malformed(error, "a codec");
  }
}

eb_status eb_delta_skip(struct eb_delta *delta, eb_error *error) {
  eb_status status = EB_OK;
  while (!status && delta->left) {
    eb_bytes bytes;
    status = take_part(delta, &bytes, error);
  }
  return status;
}

eb_status eb_delta_end(struct eb_delta *delta, eb_error *error) {
  eb_bytes bytes;
  eb_status status = take(delta, 1, &bytes, error);
  if (status || !bytes.size) return status;
  return malformed(error, "bytes behind its end");
}
