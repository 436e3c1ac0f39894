/* Takes thousands of mutants through the readers of one process:
 *
 *   tamper STORE BASE TRUST ROLES
 *                              STORE is a folder, which this program may empty; BASE a bundle, which deltas start from and
 *                              which is installed in the store; TRUST a plain trust file, ROLES one with
 *                              roles.
 *
 * On standard input records: a letter, then as many parts as it has, each behind its size (u32, little endian).
 *
 *   b TRUST BUNDLE             is the bundle verified?
 *   t OLD TRUST                does the trust file stand, and where OLD is not empty, follow it? the keys that it trusts
 *   i TRUST INDEX SIGNATURE    is the release index verified, and read for the target `test`?
 *   d DELTA                    what does the delta make of the base, under TRUST? the SHA-256 of manifest, signature, files
 *   s FILE                     install a bundle or delta into the store: the SHA-256 of the new head, or "unchanged" for
 *                              the current one; what is refused leaves the store as it was
 *   e FILE                     the same, into an empty store
 *   k TRUST FILE               the same as s, into a store that follows ROLES, with a trust file that is given
 *
 * One line for each: the status, then a result or a message. Whatever does not end within ten seconds ends the program.
 */
#include "tamper.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bundle.h"
#include "delta.h"
#include "index.h"

#define PARTS_MAX 3
#define SECONDS 10
#define RELEASE_MAX ((uint64_t)64 << 20)
#define RESULT_MAX 16384

struct base {
  eb_bytes bundle;
  eb_bytes manifest, signature; /* as they came */
  struct eb_head head;
  eb_bytes file[EB_FILES_MAX];
};

static struct base base;
static eb_bytes trust_file, roles_file;
static struct eb_cpu cpu;
static char result[RESULT_MAX];

void tamper_die(const char *what) {
  perror(what);
  exit(70);
}

void tamper_require(bool holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "tamper: %s\n", what);
  abort();
}

static ssize_t read_source(void *context, void *data, size_t size) {
  eb_bytes *left = &((struct tamper_source *)context)->left;
  size_t count = size < left->size ? size : left->size;
  if (count) memcpy(data, left->data, count);
  *left = (eb_bytes){(const uint8_t *)left->data + count, left->size - count};
  return (ssize_t)count;
}

eb_feed tamper_feed(struct tamper_source *source) {
  return (eb_feed){.read = read_source, .context = source};
}

static eb_bytes read_file(const char *path) {
  struct stat info;
  int fd = open(path, O_RDONLY);
  if (fd < 0 || fstat(fd, &info)) tamper_die(path);
  size_t size = (size_t)info.st_size;
  void *data = malloc(size + 1);
  if (!data || read(fd, data, size) != (ssize_t)size) tamper_die(path);
  close(fd);
  return (eb_bytes){data, size};
}

/* The next part, in memory of its exact size, so that ASan sees one byte too many. */
static bool next_part(eb_bytes *part) {
  uint32_t size;
  if (fread(&size, sizeof size, 1, stdin) != 1) return false;
  void *data = malloc(size ? size : 1);
  if (!data || fread(data, 1, size, stdin) != size) tamper_die("standard input");
  *part = (eb_bytes){data, size};
  return true;
}

/* ---- Bundles, trust files, indices ---- */

static eb_status verify_bundle(const eb_bytes *part, eb_error *error) {
  struct tamper_source source = {part[1]};
  eb_feed feed = tamper_feed(&source);
  eb_model *model;
  eb_status status = eb_verify(&feed, NULL, part[0], &model, error);
  if (!status) eb_free(model);
  return status;
}

static void print_keys(const struct eb_key *keys, uint32_t count) {
  size_t length = strlen(result);
  for (uint32_t i = 0; i < count; i++) {
    for (unsigned b = 0; b < EB_KEY_ID_BYTES + sizeof keys->key && length + 4 < RESULT_MAX; b++) {
      uint8_t byte = b < EB_KEY_ID_BYTES ? keys[i].id[b] : keys[i].key[b - EB_KEY_ID_BYTES];
      length += (size_t)snprintf(result + length, RESULT_MAX - length, "%02x", byte);
    }
    length += (size_t)snprintf(result + length, RESULT_MAX - length, ",");
  }
}

static eb_status open_trust(const eb_bytes *part, eb_error *error) {
  static struct eb_trust old, next;
  eb_status status = part[0].size ? eb_trust_open(part[0], &old, error) : EB_OK;
  if (!status) status = eb_trust_open(part[1], &next, error);
  if (!status && part[0].size) status = eb_trust_follows(&old, &next, error);
  if (!status) print_keys(next.release, next.release_count);
  return status;
}

static const char *target_of(void *context, const char *name) {
  (void)context, (void)name;
  return "test";
}

static eb_status read_index(const eb_bytes *part, eb_error *error) {
  static struct eb_trust trust;
  static struct eb_index index;
  struct eb_signature signature;
  eb_status status = eb_signature_parse(part[2], &signature, error);
  if (!status) status = eb_trust_open(part[0], &trust, error);
  if (!status) status = eb_signature_verify(&signature, part[1], &trust, error);
  return status ? status : eb_index_parse(part[1], target_of, NULL, &index, error);
}

/* ---- Deltas, against a base in memory ---- */

static void open_base(void) {
  struct tamper_source source = {base.bundle};
  eb_feed feed = tamper_feed(&source);
  eb_error error = {0};
  tamper_require(eb_head_read(&base.head, &feed, cpu.sha256, &error) == EB_OK, error.message);
  const uint8_t *at = (const uint8_t *)base.bundle.data + EB_BLOCK;
  base.manifest = (eb_bytes){at, base.head.manifest_size};
  at += base.head.manifest_size + eb_archive_padding(base.head.manifest_size) + EB_BLOCK;
  base.signature = (eb_bytes){at, base.head.signature_size};
  at += base.head.signature_size + eb_archive_padding(base.head.signature_size);
  tamper_require(eb_head_verify(&base.head, trust_file, &error) == EB_OK, error.message);
  for (uint32_t i = 0; i < base.head.manifest.file_count; i++) {
    size_t size = (size_t)base.head.manifest.file[i].size;
    base.file[i] = (eb_bytes){at + EB_BLOCK, size};
    at += EB_BLOCK + size + eb_archive_padding(size);
  }
}

/* The file of one new release that is made, and where it goes. */
struct making {
  eb_bytes old;
  uint8_t *out;
  uint64_t size, written;
};

static bool get_old(void *context, uint64_t offset, void *data, size_t size, eb_error *error) {
  const struct making *making = context;
  (void)error;
  tamper_require(offset <= making->old.size && size <= making->old.size - offset, "read behind the old file");
  if (size) memcpy(data, (const uint8_t *)making->old.data + offset, size);
  return true;
}

static bool put(void *context, const void *data, size_t size, eb_error *error) {
  struct making *making = context;
  (void)error;
  tamper_require(size <= making->size - making->written, "more bytes were put than the file has");
  if (size) memcpy(making->out + making->written, data, size);
  making->written += size;
  return true;
}

static eb_bytes with_path(const struct eb_manifest *manifest, const eb_bytes *files, uint32_t count, const char *path) {
  const struct eb_file *file = eb_manifest_file(manifest, path);
  ptrdiff_t at = file ? file - manifest->file : -1;
  return at >= 0 && at < (ptrdiff_t)count ? files[at] : (eb_bytes){NULL, 0};
}

static eb_status make_same(const struct eb_file *file, struct making *making, eb_error *error) {
  for (uint32_t i = 0; i < base.head.manifest.file_count; i++) {
    if (memcmp(base.head.manifest.file[i].sha256, file->sha256, EB_SHA256_BYTES) != 0) continue;
    if (base.file[i].size != file->size) break;
    put(making, base.file[i].data, base.file[i].size, error);
    return EB_OK;
  }
  return eb_fail(error, EB_REFUSED, "", "the delta takes %s from its base, which has no such file", file->path);
}

static eb_status make_file(struct eb_delta *delta, const struct eb_manifest *manifest, const eb_bytes *files,
                           uint32_t index, uint8_t *out, eb_error *error) {
  const struct eb_file *file = &manifest->file[index];
  const struct eb_file *old = eb_manifest_file(&base.head.manifest, file->path);
  struct making making = {.out = out, .size = file->size};
  if (old) making.old = base.file[old - base.head.manifest.file];
  enum eb_codec codec;
  eb_status status = eb_delta_next(delta, &codec, error);
  if (!status && codec == EB_CODEC_SAME) {
    status = make_same(file, &making, error);
  } else if (!status) {
    struct eb_delta_file wanted = {
        .path = file->path, .size = file->size, .has_old = old != NULL, .old_size = making.old.size,
        .plan = with_path(manifest, files, index, "plan.bin"),
        .old_plan = with_path(&base.head.manifest, base.file, base.head.manifest.file_count, "plan.bin"),
        .get_old = get_old, .put = put, .context = &making};
    status = eb_delta_decode(delta, codec, &wanted, error);
  }
  if (status) return status;
  tamper_require(making.written == file->size, "a file is shorter than it was said");
  uint8_t digest[EB_SHA256_BYTES];
  eb_sha256(cpu.sha256, out, (size_t)file->size, digest);
  return memcmp(digest, file->sha256, sizeof digest) == 0 ? EB_OK : eb_archive_other_file(file->path, error);
}

static eb_status make_files(struct eb_delta *delta, const struct eb_head *head, uint8_t *out, eb_error *error) {
  static eb_bytes files[EB_FILES_MAX];
  const struct eb_manifest *manifest = &head->manifest;
  eb_status status = EB_OK;
  for (uint32_t i = 0; !status && i < manifest->file_count; i++) {
    files[i] = (eb_bytes){out, (size_t)manifest->file[i].size};
    status = make_file(delta, manifest, files, i, out, error);
    out += manifest->file[i].size;
  }
  return status ? status : eb_delta_end(delta, error);
}

static eb_status make_release(struct eb_delta *delta, struct eb_head *head, eb_error *error) {
  uint8_t digest[EB_SHA256_BYTES];
  eb_status status =
      eb_delta_head(delta, base.manifest, base.signature, head->manifest_text, head->signature_text, error);
  if (status) return status;
  head->manifest_size = delta->manifest_size;
  head->signature_size = delta->signature_size;
  uint64_t size = head->manifest_size + head->signature_size;
  uint8_t *whole = malloc(size);
  if (!whole) tamper_die("memory");
  memcpy(whole, head->manifest_text, head->manifest_size);
  memcpy(whole + head->manifest_size, head->signature_text, head->signature_size);
  eb_head_identify(head, cpu.sha256);
  status = eb_head_verify(head, trust_file, error);
  if (!status) status = eb_manifest_fits(&head->manifest, &cpu, error);
  for (uint32_t i = 0; !status && i < head->manifest.file_count; i++) size += head->manifest.file[i].size;
  tamper_require(size <= RELEASE_MAX, "the release is too large for this test");
  whole = realloc(whole, size);
  if (!whole) tamper_die("memory");
  if (!status) status = make_files(delta, head, whole + head->manifest_size + head->signature_size, error);
  if (!status) {
    eb_sha256(cpu.sha256, whole, (size_t)size, digest);
    eb_digest_text(digest, result);
  }
  free(whole);
  return status;
}

static eb_status apply_delta(const eb_bytes *part, eb_error *error) {
  static struct eb_delta delta;
  static struct eb_head head;
  static void *memory;
  uint8_t id[EB_SHA256_BYTES];
  struct tamper_source source = {part[0]};
  eb_feed feed = tamper_feed(&source);
  if (!memory) memory = aligned_alloc(64, (eb_delta_memory() + 63) & ~(size_t)63);
  eb_status status = eb_delta_open(&delta, &feed, memory, error);
  if (status) return status;
  eb_sha256(cpu.sha256, base.manifest.data, base.manifest.size, id);
  if (memcmp(id, delta.base, sizeof id) != 0) return eb_fail(error, EB_REFUSED, "", "the delta has another base");
  return make_release(&delta, &head, error);
}

/* ---- Installation ---- */

static eb_status install(int letter, const eb_bytes *part, const char *store, eb_error *error) {
  static int made;
  uint8_t digest[EB_SHA256_BYTES];
  bool unchanged, with_roles = letter == 'k';
  if (made != letter) {
    tamper_store_make(store, letter == 'e' ? (eb_bytes){NULL, 0} : base.bundle, with_roles ? roles_file : trust_file);
  }
  made = letter;
  eb_status status = with_roles ? tamper_store_install(part[1], part[0], digest, &unchanged, error)
                                : tamper_store_install(part[0], trust_file, digest, &unchanged, error);
  if (!status && unchanged) snprintf(result, sizeof result, "unchanged");
  if (!status && !unchanged) eb_digest_text(digest, result);
  return status;
}

static eb_status judge(int letter, const eb_bytes *part, const char *store, eb_error *error) {
  switch (letter) {
    case 'b':
      return verify_bundle(part, error);
    case 't':
      return open_trust(part, error);
    case 'i':
      return read_index(part, error);
    case 'd':
      return apply_delta(part, error);
    default:
      return install(letter, part, store, error);
  }
}

static int parts_of(int letter) {
  static const char letters[] = "bitdsek";
  static const int parts[] = {2, 3, 2, 1, 1, 1, 2};
  const char *at = strchr(letters, letter);
  tamper_require(at && letter, "no such letter");
  return parts[at - letters];
}

int main(int argc, char **argv) {
  if (argc != 5) return puts("see the comment at the top of tamper.c"), 64;
  setvbuf(stdout, NULL, _IOLBF, 0);
  eb_cpu_detect(&cpu);
  base.bundle = read_file(argv[2]);
  trust_file = read_file(argv[3]);
  roles_file = read_file(argv[4]);
  open_base();
  for (int letter; (letter = getchar()) != EOF;) {
    eb_bytes part[PARTS_MAX];
    eb_error error = {0};
    int count = parts_of(letter);
    for (int i = 0; i < count; i++) tamper_require(next_part(&part[i]), "a record is cut off");
    result[0] = 0;
    alarm(SECONDS);
    eb_status status = judge(letter, part, argv[1], &error);
    alarm(0);
    printf("%s %s\n", eb_status_name(status), status ? error.message : result);
    for (int i = 0; i < count; i++) free((void *)(uintptr_t)part[i].data);
  }
  return 0;
}
