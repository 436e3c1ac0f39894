#include "date.h"

#include <stdio.h>

/* The number that `count` digits spell, or UINT32_MAX. */
static uint32_t digits(const uint8_t *text, unsigned count) {
  uint32_t number = 0;
  for (unsigned i = 0; i < count; i++) {
    if (text[i] < '0' || text[i] > '9') return UINT32_MAX;
    number = number * 10 + (text[i] - '0');
  }
  return number;
}

static uint32_t days_in(uint32_t year, uint32_t month) {
  static const uint8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
  return days[month - 1] + (month == 2 && leap);
}

bool eb_date_parse(eb_bytes text, uint32_t *date) {
  const uint8_t *at = text.data;
  if (text.size != 10 || at[4] != '-' || at[7] != '-') return false;
  uint32_t year = digits(at, 4), month = digits(at + 5, 2), day = digits(at + 8, 2);
  if (year < 2000 || year > 9999 || month < 1 || month > 12 || day < 1 || day > days_in(year, month)) return false;
  *date = year * 10000 + month * 100 + day;
  return true;
}

void eb_date_text(uint32_t date, char text[11]) {
  snprintf(text, 11, "%04u-%02u-%02u", date / 10000 % 10000, date / 100 % 100, date % 100);
}
