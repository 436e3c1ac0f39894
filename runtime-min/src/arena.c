#include "arena.h"

#include <stdbool.h>
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

#ifdef __SANITIZE_ADDRESS__

/* AddressSanitizer sees the ends of a block only when its own allocator made it. */
static void block_new(struct eb_arena *arena, bool whole) {
  (void)whole;
  void *block = arena->size <= (size_t)64 << 20 ? aligned_alloc(EB_ALIGN, arena->size) : NULL;
  arena->base = arena->mapping = block ? memset(block, 0, arena->size) : NULL;
}

static void block_free(struct eb_arena *arena) {
  free(arena->mapping);
}

eb_status eb_arena_seal(struct eb_arena *arena, eb_error *error) {
  (void)arena, (void)error;
  return EB_OK;
}

#else

#define HUGE_PAGE ((size_t)2 << 20)
#define HUGE_WASTE ((size_t)448 << 10) /* what rounding a block up to whole huge pages may cost */
#define POPULATE_WRITE 23              /* MADV_POPULATE_WRITE, Linux 5.14; not in old headers */

static size_t round_up(size_t size, size_t to) {
  return (size + to - 1) / to * to;
}

/* Faulting in 4 KiB pages one by one takes longer than filling them: a block of weights is laid out on huge pages but
 * for a rest that would waste too much of one. All of this is advice, and a kernel may know none of it. */
static void lay_out(struct eb_arena *arena) {
  size_t rounded = round_up(arena->size, HUGE_PAGE);
  size_t huge = rounded - arena->size <= HUGE_WASTE ? rounded : rounded - HUGE_PAGE;
  if (huge) madvise(arena->base, huge, MADV_HUGEPAGE);
  madvise(arena->base, arena->size, POPULATE_WRITE);
}

static void block_new(struct eb_arena *arena, bool whole) {
  bool huge = whole && arena->size + HUGE_WASTE >= HUGE_PAGE;
  arena->mapped = huge ? round_up(arena->size, HUGE_PAGE) + HUGE_PAGE : arena->size;
  arena->mapping = mmap(NULL, arena->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (arena->mapping == MAP_FAILED) {
    arena->mapping = NULL;
    return;
  }
  arena->base = huge ? (uint8_t *)round_up((uintptr_t)arena->mapping, HUGE_PAGE) : arena->mapping;
  if (whole) lay_out(arena);
}

static void block_free(struct eb_arena *arena) {
  munmap(arena->mapping, arena->mapped);
}

eb_status eb_arena_seal(struct eb_arena *arena, eb_error *error) {
  if (mprotect(arena->mapping, arena->mapped, PROT_READ) == 0) return EB_OK;
  return eb_fail(error, EB_MEMORY, "vm.max_map_count or an address space limit is too low",
                 "cannot make %zu bytes of memory read-only", arena->size);
}

#endif

static eb_status open_block(struct eb_arena *arena, size_t size, bool whole, eb_error *error) {
  *arena = (struct eb_arena){.size = eb_align_up(size ? size : 1)};
  block_new(arena, whole);
  if (arena->mapping) return EB_OK;
  *arena = (struct eb_arena){0};
  return eb_fail(error, EB_MEMORY, "free memory, or run a smaller model", "cannot get %zu bytes of memory", size);
}

eb_status eb_arena_open(struct eb_arena *arena, size_t size, eb_error *error) {
  return open_block(arena, size, false, error);
}

eb_status eb_arena_open_whole(struct eb_arena *arena, size_t size, eb_error *error) {
  return open_block(arena, size, true, error);
}

void *eb_arena_take(struct eb_arena *arena, size_t bytes) {
  size_t rounded = eb_align_up(bytes);
  if (rounded < bytes || rounded > arena->size - arena->used) return NULL;
  void *piece = arena->base + arena->used;
  arena->used += rounded;
  return piece;
}

void eb_arena_close(struct eb_arena *arena) {
  if (arena->mapping) block_free(arena);
  *arena = (struct eb_arena){0};
}
