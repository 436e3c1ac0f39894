#include "bundle.h"

#include <stdio.h>
#include <string.h>

#include "reader.h"

#define BLOCK ((size_t)512)

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

/* Header, data and padding of the next member, which must be `name` with `size` bytes. */
static eb_status read_member(struct eb_reader *reader, const char *name, uint64_t size, const uint8_t **content,
                             eb_error *error) {
  uint8_t expected[BLOCK];
  make_header(name, size, expected);
  const uint8_t *header = eb_read_bytes(reader, BLOCK);
  if (!header) return cut_off(error);
  if (memcmp(header, expected, BLOCK) != 0) {
    return eb_fail(error, EB_REFUSED, damaged, "the bundle's archive header of %s is not as it must be", name);
  }
  *content = eb_read_bytes(reader, size);
  size_t pad = (BLOCK - size % BLOCK) % BLOCK;
  const uint8_t *padding = eb_read_bytes(reader, pad);
  if (!*content || !padding) return cut_off(error);
  if (all_zero(padding, pad)) return EB_OK;
  return eb_fail(error, EB_REFUSED, damaged, "the bundle's padding behind %s is not zero", name);
}

/* The size in the header of the next member: 11 octal digits. */
static bool peek_size(const struct eb_reader *reader, uint64_t *size) {
  if (reader->left < BLOCK) return false;
  *size = 0;
  for (size_t i = 124; i < 135; i++) {
    if (reader->at[i] < '0' || reader->at[i] > '7') return false;
    *size = *size << 3 | (uint64_t)(reader->at[i] - '0');
  }
  return true;
}

/* Copies a member of a size that only its header tells, so that nobody can change it between check and use. */
static eb_status copy_member(struct eb_reader *reader, const char *name, uint8_t *copy, size_t limit, size_t *size,
                             eb_error *error) {
  if (reader->left < BLOCK) return cut_off(error);
  uint64_t stated;
  if (!peek_size(reader, &stated)) {
    return eb_fail(error, EB_REFUSED, "give a file that edgebuild compile wrote", "this is not a bundle");
  }
  if (stated > limit) return eb_fail(error, EB_REFUSED, damaged, "the bundle's %s is over %zu bytes", name, limit);
  const uint8_t *content = NULL;
  eb_status status = read_member(reader, name, stated, &content, error);
  if (status) return status;
  memcpy(copy, content, stated);
  *size = stated;
  return EB_OK;
}

static eb_status check_comment(const struct eb_manifest *manifest, eb_bytes comment, eb_error *error) {
  char expected[192];
  int length =
      snprintf(expected, sizeof expected, "edgebuild %s %s %s", manifest->name, manifest->version, manifest->target);
  if ((size_t)length == comment.size && memcmp(comment.data, expected, comment.size) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, damaged, "the signature's comment is not \"%s\"", expected);
}

/* Steps 1 to 3. */
static eb_status read_manifest(struct eb_bundle *bundle, struct eb_reader *reader, eb_bytes trust, eb_error *error) {
  size_t manifest_size = 0, signature_size = 0;
  struct eb_signature signature;
  eb_bytes text = {bundle->manifest_text, 0}, signature_file = {bundle->signature_text, 0};
  eb_status status =
      copy_member(reader, "manifest", (uint8_t *)bundle->manifest_text, EB_MANIFEST_BYTES_MAX, &manifest_size, error);
  if (!status) {
    status =
        copy_member(reader, "manifest.minisig", bundle->signature_text, EB_SIGNATURE_BYTES_MAX, &signature_size, error);
  }
  text.size = manifest_size;
  signature_file.size = signature_size;
  if (!status) status = eb_signature_parse(signature_file, &signature, error);
  if (!status) status = eb_signature_verify(&signature, text, trust, error);
  if (!status) status = eb_manifest_parse(bundle->manifest_text, manifest_size, &bundle->manifest, error);
  if (!status) status = check_comment(&bundle->manifest, signature.comment, error);
  if (!status) eb_key_id_text(signature.key_id, bundle->signer);
  return status;
}

/* Step 4. */
static eb_status read_files(struct eb_bundle *bundle, struct eb_reader *reader, const struct eb_cpu *cpu,
                            eb_error *error) {
  for (uint32_t i = 0; i < bundle->manifest.file_count; i++) {
    const struct eb_file *file = &bundle->manifest.file[i];
    eb_status status = read_member(reader, file->path, file->size, &bundle->content[i], error);
    if (status) return status;
    uint8_t digest[EB_SHA256_BYTES];
    eb_sha256(cpu->sha256, bundle->content[i], file->size, digest);
    if (memcmp(digest, file->sha256, sizeof digest) != 0) {
      return eb_fail(error, EB_REFUSED, damaged, "the bundle's file %s is not the one that was signed (SHA-256)",
                     file->path);
    }
  }
  const uint8_t *end = eb_read_bytes(reader, 2 * BLOCK);
  if (!end) return cut_off(error);
  if (all_zero(end, 2 * BLOCK) && reader->left == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, damaged, "the bundle has bytes behind its end");
}

eb_status eb_bundle_verify(struct eb_bundle *bundle, eb_bytes archive, eb_bytes trust, const struct eb_cpu *cpu,
                           eb_error *error) {
  struct eb_reader reader = eb_reader_of(archive.data, archive.size);
  eb_status status = read_manifest(bundle, &reader, trust, error);
  if (!status) status = read_files(bundle, &reader, cpu, error);
  if (!status) status = eb_manifest_fits(&bundle->manifest, cpu, error);
  return status;
}

eb_bytes eb_bundle_file(const struct eb_bundle *bundle, const char *path) {
  const struct eb_file *file = eb_manifest_file(&bundle->manifest, path);
  if (!file) return (eb_bytes){NULL, 0};
  return (eb_bytes){bundle->content[file - bundle->manifest.file], file->size};
}
