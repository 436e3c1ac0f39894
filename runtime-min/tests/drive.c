/* Loads many bundles in one process, through the calls that edgebuild-run makes.
 *
 *   drive flip BUNDLE TRUST COUNT SEED   COUNT copies with one byte changed: how many were accepted?
 *   drive verify TRUST                   as load, without loading what was verified
 *   drive load TRUST THREADS             bundles on standard input, each behind its size (u32, little endian): one line
 *                                        each, the status, after running those that load
 *   drive trust                          pairs of trust files, each behind its size: whether the second stands, and,
 *                                        where the first is not empty, whether it follows that one
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "edgebuild_run.h"
#include "trust.h"

static void die(const char *what) {
  perror(what);
  exit(70);
}

static eb_bytes read_file(const char *path) {
  struct stat info;
  int fd = open(path, O_RDONLY);
  if (fd < 0 || fstat(fd, &info)) die(path);
  size_t size = (size_t)info.st_size;
  void *data = aligned_alloc(64, (size + 63) & ~(size_t)63);
  if (!data || read(fd, data, size) != (ssize_t)size) die(path);
  close(fd);
  return (eb_bytes){data, size};
}

static ssize_t read_bytes(void *context, void *data, size_t size) {
  eb_bytes *left = context;
  size_t count = size < left->size ? size : left->size;
  if (count) memcpy(data, left->data, count);
  *left = (eb_bytes){(const uint8_t *)left->data + count, left->size - count};
  return (ssize_t)count;
}

/* Loads and, when that works, runs a bundle with inputs of zeros. */
static eb_status load_and_run(eb_bytes bundle, eb_bytes trust, uint32_t threads, eb_error *error) {
  eb_model *model;
  eb_feed feed = {.read = read_bytes, .context = &bundle};
  eb_status status = eb_load(&feed, NULL, trust, threads, false, &model, error);
  if (status) return status;
  for (int run = 0; run < 3; run++) eb_run(model);
  eb_free(model);
  return EB_OK;
}

/* xorshift64*: the same changes for the same seed, everywhere. */
static uint64_t next_random(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C(2685821657736338717);
}

static int flip(char **argv) {
  eb_bytes bundle = read_file(argv[0]), trust = read_file(argv[1]);
  uint64_t count = strtoull(argv[2], NULL, 10), state = strtoull(argv[3], NULL, 10) + 1, accepted = 0;
  eb_error error = {0};
  if (load_and_run(bundle, trust, 1, &error)) return printf("the untouched bundle: %s\n", error.message), 1;
  uint8_t *bytes = (uint8_t *)(uintptr_t)bundle.data;
  for (uint64_t i = 0; i < count; i++) {
    size_t at = (size_t)(next_random(&state) % bundle.size);
    uint8_t before = bytes[at];
    bytes[at] ^= (uint8_t)(1 + next_random(&state) % 255);
    if (load_and_run(bundle, trust, 1, &error) == EB_OK) {
      printf("accepted: byte %zu\n", at);
      accepted++;
    }
    bytes[at] = before;
  }
  free(bytes);
  free((void *)(uintptr_t)trust.data);
  printf("%llu changed, %llu accepted\n", (unsigned long long)count, (unsigned long long)accepted);
  return accepted != 0;
}

static eb_status verify(eb_bytes bundle, eb_bytes trust, eb_error *error) {
  eb_model *model;
  eb_feed feed = {.read = read_bytes, .context = &bundle};
  eb_status status = eb_verify(&feed, NULL, trust, &model, error);
  if (!status) eb_free(model);
  return status;
}

/* The next file on standard input, in memory of its exact size; false at the end. */
static bool next_file(eb_bytes *file) {
  uint32_t size;
  if (fread(&size, sizeof size, 1, stdin) != 1) return false;
  void *data = malloc(size ? size : 1);
  if (!data || fread(data, 1, size, stdin) != size) die("standard input");
  *file = (eb_bytes){data, size};
  return true;
}

static int trust_files(void) {
  static struct eb_trust old, next;
  eb_bytes first, second;
  while (next_file(&first) && next_file(&second)) {
    eb_error error = {0};
    eb_status status = first.size ? eb_trust_open(first, &old, &error) : EB_OK;
    if (!status) status = eb_trust_open(second, &next, &error);
    if (!status && first.size) status = eb_trust_follows(&old, &next, &error);
    printf("%s %s\n", eb_status_name(status), error.message);
    free((void *)(uintptr_t)first.data);
    free((void *)(uintptr_t)second.data);
  }
  return 0;
}

/* Bundles on standard input; `threads` is 0 to verify them only. */
static int load(const char *trust_path, uint32_t threads) {
  eb_bytes trust = read_file(trust_path);
  uint32_t size;
  while (fread(&size, sizeof size, 1, stdin) == 1) {
    void *data = aligned_alloc(64, ((size_t)size + 63) & ~(size_t)63);
    if (!data || fread(data, 1, size, stdin) != size) die("standard input");
    eb_error error = {0};
    eb_bytes bundle = {data, size};
    eb_status status = threads ? load_and_run(bundle, trust, threads, &error) : verify(bundle, trust, &error);
    printf("%s %s\n", eb_status_name(status), error.message);
    free(data);
  }
  free((void *)(uintptr_t)trust.data);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 6 && strcmp(argv[1], "flip") == 0) return flip(argv + 2);
  if (argc == 4 && strcmp(argv[1], "load") == 0) return load(argv[2], (uint32_t)atoi(argv[3]));
  if (argc == 3 && strcmp(argv[1], "verify") == 0) return load(argv[2], 0);
  if (argc == 2 && strcmp(argv[1], "trust") == 0) return trust_files();
  return puts("see the comment at the top of drive.c"), 64;
}
