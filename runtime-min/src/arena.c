#include "arena.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

size_t eb_align_up(size_t bytes) {
  return (bytes + EB_ALIGN - 1) & ~(EB_ALIGN - 1);
}

/* AddressSanitizer sees the ends of a block only when its own allocator made it. */
static void *block_new(size_t size) {
#ifdef __SANITIZE_ADDRESS__
  void *block = size <= (size_t)64 << 20 ? aligned_alloc(EB_ALIGN, size) : NULL;
  return block ? memset(block, 0, size) : NULL;
#else
  void *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return block == MAP_FAILED ? NULL : block;
#endif
}

eb_status eb_arena_open(struct eb_arena *arena, size_t size, eb_error *error) {
  size = eb_align_up(size ? size : 1);
  *arena = (struct eb_arena){.base = block_new(size), .size = size};
  if (arena->base) return EB_OK;
  arena->size = 0;
  return eb_fail(error, EB_MEMORY, "free memory, or run a smaller model", "cannot get %zu bytes of memory", size);
}

void *eb_arena_take(struct eb_arena *arena, size_t bytes) {
  size_t rounded = eb_align_up(bytes);
  if (rounded < bytes || rounded > arena->size - arena->used) return NULL;
  void *piece = arena->base + arena->used;
  arena->used += rounded;
  return piece;
}

void eb_arena_close(struct eb_arena *arena) {
  if (arena->base) {
#ifdef __SANITIZE_ADDRESS__
    free(arena->base);
#else
    munmap(arena->base, arena->size);
#endif
  }
  *arena = (struct eb_arena){0};
}
