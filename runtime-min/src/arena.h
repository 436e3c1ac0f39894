/* One block of memory that is cut into 64-byte aligned pieces; nothing is freed singly. */
#ifndef EB_ARENA_H
#define EB_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define EB_ALIGN ((size_t)64)

struct eb_arena {
  uint8_t *base;
  size_t size;
  size_t used;
  void *mapping; /* what the operating system gave: the block and what was left out to align it */
  size_t mapped;
};

/* `bytes` rounded up to EB_ALIGN. */
size_t eb_align_up(size_t bytes);

/* A zeroed block of `size` bytes from the operating system. */
eb_status eb_arena_open(struct eb_arena *arena, size_t size, eb_error *error);

/* The same for a block that will be used from end to end: its pages are there at once, large ones where that wastes
 * little. The contents of a page that has never been written are zero. */
eb_status eb_arena_open_whole(struct eb_arena *arena, size_t size, eb_error *error);

/* From now on nobody may write to the block; an error when the operating system does not promise it. */
eb_status eb_arena_seal(struct eb_arena *arena, eb_error *error);

/* The next `bytes` bytes; NULL when the block is too small, which is a mistake of the one who opened it. */
void *eb_arena_take(struct eb_arena *arena, size_t bytes);

void eb_arena_close(struct eb_arena *arena);

#endif
