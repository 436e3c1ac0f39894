#include "bundle.h"

#include <string.h>
#include <sys/types.h>

#define BLOCK ((size_t)512)
#define CHUNK ((size_t)64 << 10)

static const char damaged[] = "the file was damaged or changed on its way; get it again from its source";

static void octal(uint8_t *field, unsigned digits, uint64_t value) {
  for (unsigned i = digits; i > 0; i--, value >>= 3) field[i - 1] = (uint8_t)('0' + (value & 7));
}

/* The one header that SPEC 1 allows for a member. */
static void make_header(const char *name, uint64_t size, uint8_t header[BLOCK]) {
  memset(header, 0, BLOCK);
  memcpy(header, name, strlen(name));
  memcpy(header + 100, strcmp(name, "edgebuild-run") == 0 ? "0000755" : "0000644", 7);
  octal(header + 108, 7, 0);
  octal(header + 116, 7, 0);
  octal(header + 124, 11, size);
  octal(header + 136, 11, 0);
  memset(header + 148, ' ', 8);
  header[156] = '0';
  memcpy(header + 257, "ustar", 5);
  memcpy(header + 263, "00", 2);
  uint64_t sum = 0;
  for (size_t i = 0; i < BLOCK; i++) sum += header[i];
  octal(header + 148, 6, sum);
  header[154] = 0;
}

static eb_status cut_off(eb_error *error) {
  return eb_fail(error, EB_REFUSED, damaged, "the bundle is cut off");
}

static bool all_zero(const uint8_t *bytes, size_t size) {
  uint8_t any = 0;
  for (size_t i = 0; i < size; i++) any |= bytes[i];
  return any == 0;
}

static eb_status read_some(const eb_feed *feed, void *data, size_t size, size_t *got, eb_error *error) {
  ssize_t count = feed->read(feed->context, data, size);
  *got = count < 0 ? 0 : (size_t)count;
  if (count >= 0) return EB_OK;
  return eb_fail(error, EB_IO, "get the file again from its source", "cannot read the bundle: %s",
                 strerror((int)-count));
}

static eb_status read_all(const eb_feed *feed, void *data, size_t size, eb_error *error) {
  for (size_t done = 0; done < size;) {
    size_t got;
    eb_status status = read_some(feed, (uint8_t *)data + done, size - done, &got, error);
    if (status) return status;
    if (got == 0) return cut_off(error);
    done += got;
  }
  return EB_OK;
}

static eb_status check_header(const uint8_t header[BLOCK], const char *name, uint64_t size, eb_error *error) {
  uint8_t expected[BLOCK];
  make_header(name, size, expected);
  if (memcmp(header, expected, BLOCK) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, damaged, "the bundle's archive header of %s is not as it must be", name);
}

static eb_status read_padding(const eb_feed *feed, const char *name, uint64_t size, eb_error *error) {
  uint8_t padding[BLOCK];
  size_t count = (BLOCK - size % BLOCK) % BLOCK;
  eb_status status = read_all(feed, padding, count, error);
  if (status || all_zero(padding, count)) return status;
  return eb_fail(error, EB_REFUSED, damaged, "the bundle's padding behind %s is not zero", name);
}

/* The size in a header: 11 octal digits. */
static bool stated_size(const uint8_t header[BLOCK], uint64_t *size) {
  *size = 0;
  for (size_t i = 124; i < 135; i++) {
    if (header[i] < '0' || header[i] > '7') return false;
    *size = *size << 3 | (uint64_t)(header[i] - '0');
  }
  return true;
}

/* A member of a size that only its header tells. */
static eb_status read_short(const eb_feed *feed, const char *name, void *data, size_t limit, size_t *size,
                            eb_error *error) {
  uint8_t header[BLOCK];
  eb_status status = read_all(feed, header, BLOCK, error);
  if (status) return status;
  uint64_t stated;
  if (!stated_size(header, &stated)) {
    return eb_fail(error, EB_REFUSED, "give a file that edgebuild compile wrote", "this is not a bundle");
  }
  if (stated > limit) return eb_fail(error, EB_REFUSED, damaged, "the bundle's %s is over %zu bytes", name, limit);
  status = check_header(header, name, stated, error);
  if (!status) status = read_all(feed, data, stated, error);
  if (!status) status = read_padding(feed, name, stated, error);
  *size = stated;
  return status;
}

/* Steps 1 to 3. */
static eb_status read_manifest(struct eb_bundle *bundle, const eb_feed *feed, eb_bytes trust_file, eb_error *error) {
  struct eb_signature signature;
  struct eb_trust trust;
  eb_bytes text = {bundle->manifest_text, 0}, signature_file = {bundle->signature_text, 0};
  eb_status status = read_short(feed, "manifest", bundle->manifest_text, EB_MANIFEST_BYTES_MAX, &text.size, error);
  if (!status) {
    status = read_short(feed, "manifest.minisig", bundle->signature_text, EB_SIGNATURE_BYTES_MAX, &signature_file.size,
                        error);
  }
  if (!status) status = eb_signature_parse(signature_file, &signature, error);
  if (!status) status = eb_trust_open(trust_file, &trust, error);
  if (!status) status = eb_signature_verify(&signature, text, &trust, error);
  if (!status) status = eb_manifest_parse(bundle->manifest_text, text.size, &bundle->manifest, error);
  if (!status) eb_key_id_text(signature.key_id, bundle->signer);
  return status;
}

static bool is_golden(const struct eb_file *file) {
  return strncmp(file->path, "golden/", 7) == 0;
}

static bool is_kept(const struct eb_manifest *manifest, const struct eb_file *file, enum eb_keep keep) {
  static const char *const program[] = {"program.so", "plan.bin", "weights.bin"};
  if (keep == EB_KEEP_NONE) return false;
  for (size_t i = 0; i < sizeof program / sizeof *program; i++) {
    if (strcmp(file->path, program[i]) == 0) return true;
  }
  return is_golden(file) && (keep == EB_KEEP_GOLDEN || !manifest->checked);
}

/* Reads `size` bytes and hashes them while they are in the processor's cache: into `content`, or, when that is NULL,
 * through a buffer. */
static eb_status read_hashed(const eb_feed *feed, uint64_t size, bool accelerated, uint8_t *content,
                             uint8_t digest[EB_SHA256_BYTES], eb_error *error) {
  uint8_t buffer[CHUNK];
  struct eb_sha256 hash;
  eb_sha256_begin(&hash, accelerated);
  for (; size > CHUNK; size -= CHUNK) {
    eb_status status = read_all(feed, content ? content : buffer, CHUNK, error);
    if (status) return status;
    eb_sha256_add(&hash, content ? content : buffer, CHUNK);
    if (content) content += CHUNK;
  }
  eb_status status = read_all(feed, content ? content : buffer, size, error);
  if (!status) eb_sha256_end(&hash, content ? content : buffer, size, digest);
  return status;
}

static eb_status read_file(struct eb_bundle *bundle, uint32_t index, const eb_feed *feed, bool accelerated, bool kept,
                           eb_error *error) {
  const struct eb_file *file = &bundle->manifest.file[index];
  struct eb_arena *content = &bundle->content[index];
  uint8_t header[BLOCK], digest[EB_SHA256_BYTES];
  eb_status status = read_all(feed, header, BLOCK, error);
  if (!status) status = check_header(header, file->path, file->size, error);
  if (!status && kept) status = eb_arena_open_whole(content, file->size, error);
  if (!status) status = read_hashed(feed, file->size, accelerated, content->base, digest, error);
  if (!status) status = read_padding(feed, file->path, file->size, error);
  if (status) return status;
  if (memcmp(digest, file->sha256, sizeof digest) != 0) {
    return eb_fail(error, EB_REFUSED, damaged, "the bundle's file %s is not the one that was signed (SHA-256)",
                   file->path);
  }
  return kept ? eb_arena_seal(content, error) : EB_OK;
}

static eb_status read_end(const eb_feed *feed, eb_error *error) {
  uint8_t end[2 * BLOCK + 1];
  size_t more = 0;
  eb_status status = read_all(feed, end, 2 * BLOCK, error);
  if (!status) status = read_some(feed, end + 2 * BLOCK, 1, &more, error);
  if (status || (all_zero(end, 2 * BLOCK) && !more)) return status;
  return eb_fail(error, EB_REFUSED, damaged, "the bundle has bytes behind its end");
}

/* Step 4. */
static eb_status read_files(struct eb_bundle *bundle, const eb_feed *feed, bool accelerated, enum eb_keep keep,
                            eb_error *error) {
  for (uint32_t i = 0; i < bundle->manifest.file_count; i++) {
    bool kept = is_kept(&bundle->manifest, &bundle->manifest.file[i], keep);
    eb_status status = read_file(bundle, i, feed, accelerated, kept, error);
    if (status) return status;
  }
  return read_end(feed, error);
}

eb_status eb_bundle_read(struct eb_bundle *bundle, const eb_feed *feed, eb_bytes trust, const struct eb_cpu *cpu,
                         enum eb_keep keep, eb_error *error) {
  eb_status status = read_manifest(bundle, feed, trust, error);
  /* A bundle for another machine is read to its end like any other, but takes no memory. */
  if (!status && eb_manifest_fits(&bundle->manifest, cpu, NULL)) keep = EB_KEEP_NONE;
  if (!status) status = read_files(bundle, feed, cpu->sha256, keep, error);
  if (!status) status = eb_manifest_fits(&bundle->manifest, cpu, error);
  return status;
}

eb_bytes eb_bundle_file(const struct eb_bundle *bundle, const char *path) {
  const struct eb_file *file = eb_manifest_file(&bundle->manifest, path);
  const struct eb_arena *content = file ? &bundle->content[file - bundle->manifest.file] : NULL;
  if (!content || !content->base) return (eb_bytes){NULL, 0};
  return (eb_bytes){content->base, file->size};
}

void eb_bundle_drop(struct eb_bundle *bundle, const struct eb_file *file) {
  eb_arena_close(&bundle->content[file - bundle->manifest.file]);
}

void eb_bundle_drop_golden(struct eb_bundle *bundle) {
  for (uint32_t i = 0; i < bundle->manifest.file_count; i++) {
    const struct eb_file *file = &bundle->manifest.file[i];
    if (is_golden(file)) eb_bundle_drop(bundle, file);
  }
}

void eb_bundle_close(struct eb_bundle *bundle) {
  for (uint32_t i = 0; i < bundle->manifest.file_count; i++) eb_arena_close(&bundle->content[i]);
}
