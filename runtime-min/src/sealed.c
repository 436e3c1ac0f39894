#include "sealed.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MEMFD_CLOEXEC 1u
#define MEMFD_ALLOW_SEALING 2u
#define MEMFD_EXEC 16u /* Linux 6.3; older kernels refuse the flag and need none */

static eb_status system_failed(const char *name, const char *what, eb_error *error) {
  if (eb_is_shortage(errno)) {
    return eb_fail(error, EB_MEMORY, "free memory, or end other processes", "cannot load %s: %s: %s", name, what,
                   strerror(errno));
  }
  return eb_fail(error, EB_UNSUPPORTED, "edgebuild-run needs Linux 3.17 or newer, with /proc", "cannot load %s: %s: %s",
                 name, what, strerror(errno));
}

static int memfd_new(const char *name) {
  unsigned flags = MEMFD_CLOEXEC | MEMFD_ALLOW_SEALING;
  int fd = (int)syscall(SYS_memfd_create, name, flags | MEMFD_EXEC);
  return fd >= 0 || errno != EINVAL ? fd : (int)syscall(SYS_memfd_create, name, flags);
}

static bool write_all(int fd, const uint8_t *data, size_t size) {
  while (size) {
    ssize_t written = write(fd, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    data += written;
    size -= (size_t)written;
  }
  return true;
}

static bool hash_of_file(int fd, size_t size, const struct eb_cpu *cpu, uint8_t digest[EB_SHA256_BYTES]) {
  void *content = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (content == MAP_FAILED) return false;
  eb_sha256(cpu->sha256, content, size, digest);
  munmap(content, size);
  return true;
}

/* Fills and seals `fd`, then compares the hash of what it holds. */
static eb_status fill_and_seal(const char *name, int fd, eb_bytes image, const uint8_t sha256[EB_SHA256_BYTES],
                               const struct eb_cpu *cpu, eb_error *error) {
  if (!write_all(fd, image.data, image.size)) return system_failed(name, "write", error);
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) {
    return system_failed(name, "seal", error);
  }
  uint8_t digest[EB_SHA256_BYTES];
  if (!hash_of_file(fd, image.size, cpu, digest)) return system_failed(name, "map", error);
  if (memcmp(digest, sha256, sizeof digest) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, "somebody writes to the bundle while it is loaded; use a copy of your own",
                 "%s changed while it was loaded", name);
}

eb_status eb_sealed_open(const char *name, eb_bytes image, const uint8_t sha256[EB_SHA256_BYTES],
                         const struct eb_cpu *cpu, int *fd, eb_error *error) {
  *fd = -1;
  if (image.size == 0) {
    return eb_fail(error, EB_REFUSED, "the compiler and this runtime disagree; compile the recipe again", "%s is empty",
                   name);
  }
  int made = memfd_new(name);
  if (made < 0) return system_failed(name, "memfd_create", error);
  eb_status status = fill_and_seal(name, made, image, sha256, cpu, error);
  if (status) {
    close(made);
    return status;
  }
  *fd = made;
  return EB_OK;
}
