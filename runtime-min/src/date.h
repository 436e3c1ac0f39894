/* Days of the calendar, as numbers that compare like the days: year * 10000 + month * 100 + day. */
#ifndef EB_DATE_H
#define EB_DATE_H

#include "status.h"

/* `YYYY-MM-DD`, a day of the years 2000 to 9999 that exists. */
bool eb_date_parse(eb_bytes text, uint32_t *date);

/* Ends with NUL. */
void eb_date_text(uint32_t date, char text[11]);

#endif
