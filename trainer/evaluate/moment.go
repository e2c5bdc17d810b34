package evaluate

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// clock is a time of day, in minutes after midnight; of one without a half of the day, either may be meant.
type clock struct {
	minute, second int
	half           byte // 'a' or 'p', 0 if it names none
}

var timeOfDay = regexp.MustCompile(`(?i)^(\d{1,2})(?::(\d\d))?(?::(\d\d))?\s*(?:([ap])\.?\s?m\.?|(oclock))?$`)

// clockOf reads a time of day, nil if the text is none: a number alone is none.
func clockOf(text string) *clock {
	switch strings.ToLower(text) {
	case "noon":
		return &clock{12 * 60, 0, 'p'}
	case "midnight":
		return &clock{0, 0, 'a'}
	}
	m := timeOfDay.FindStringSubmatch(text)
	if m == nil || m[2] == "" && m[4] == "" && m[5] == "" {
		return nil
	}
	read := func(digits string) int { n, _ := strconv.Atoi(digits); return n } // nothing is 0
	c := clock{60*read(m[1]) + read(m[2]), read(m[3]), 0}
	if read(m[1]) > 24 || read(m[2]) > 59 || read(m[3]) > 59 {
		return nil
	}
	if m[4] != "" && read(m[1]) <= 12 {
		c.half = m[4][0] | 0x20
		c.minute %= 12 * 60
		if c.half == 'p' {
			c.minute += 12 * 60
		}
	}
	return &c
}

// same reports whether two times of day may be one: "3:30" is "3:30 pm", and so is "15:30".
func (c *clock) same(d *clock) bool {
	if c.second != d.second {
		return false
	}
	if c.minute == d.minute {
		return true
	}
	if d.half == 'p' {
		c, d = d, c
	}
	return c.half == 'p' && d.half == 0 && d.minute >= 60 && c.minute == d.minute+12*60
}

var (
	yearFirst = regexp.MustCompile(`^(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})$`)
	yearLast  = regexp.MustCompile(`^(\d{1,2})([-/.])(\d{1,2})[-/.](\d{4})$`)
	monthName = `(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?`
	monthDay  = regexp.MustCompile(`(?i)^` + monthName + `\s+(\d{1,2})(?:st|nd|rd|th)?(?:,?\s+(\d{4}))?$`)
	dayMonth  = regexp.MustCompile(`(?i)^(?:the\s+)?(\d{1,2})(?:st|nd|rd|th|\.)?\s+(?:of\s+)?` + monthName + `(?:,?\s+(\d{4}))?$`)
)

// dateOf brings a date to one spelling, and returns nothing if the text is none. "3/4/2020" is in March, as where that is written.
func dateOf(text string) string {
	var year, month, day string
	if m := yearFirst.FindStringSubmatch(text); m != nil {
		year, month, day = m[1], m[2], m[3]
	} else if m := yearLast.FindStringSubmatch(text); m != nil {
		year, month, day = m[4], m[1], m[3]
		if first, _ := strconv.Atoi(month); first > 12 || m[2] == "." {
			month, day = day, month
		}
	} else if m := monthDay.FindStringSubmatch(text); m != nil {
		month, day, year = m[1], m[2], m[3]
	} else if m := dayMonth.FindStringSubmatch(text); m != nil {
		day, month, year = m[1], m[2], m[3]
	} else {
		return ""
	}
	if isLetter(month[0]) {
		month = strconv.Itoa(strings.Index("janfebmaraprmayjunjulaugsepoctnovdec", strings.ToLower(month[:3]))/3 + 1)
	}
	m, _ := strconv.Atoi(month)
	d, _ := strconv.Atoi(day)
	if m < 1 || m > 12 || d < 1 || d > 31 {
		return ""
	}
	return fmt.Sprintf("date %s-%d-%d", year, m, d)
}
