package source

import "fmt"

// scanner finds the end of a JSON value that begins with a bracket or a quote, fed in parts. It knows brackets, strings
// and escapes; whether the value is sound otherwise is for those to say who decode it.
type scanner struct {
	depth    int
	inString bool
	escaped  bool
}

// ordinary are the bytes of a string that mean nothing to the scanner.
var ordinary = func() (table [256]bool) {
	for c := range table {
		table[c] = c >= 0x20 && c != '"' && c != '\\'
	}
	return table
}()

// structural are the bytes outside strings that mean something to it.
var structural = [256]bool{'"': true, '{': true, '}': true, '[': true, ']': true}

// advance consumes n bytes of part; done says that the value ends with them.
func (s *scanner) advance(part []byte) (n int, done bool, err error) {
	for i := 0; i < len(part); {
		if !s.inString {
			for i < len(part) && !structural[part[i]] {
				i++
			}
			if i == len(part) {
				break
			}
			switch part[i] {
			case '"':
				s.inString = true
			case '{', '[':
				s.depth++
			default:
				s.depth--
			}
			i++
			if s.depth <= 0 && !s.inString {
				return i, true, nil
			}
			continue
		}
		if s.escaped {
			s.escaped = false
			i++
			continue
		}
		for i < len(part) && ordinary[part[i]] {
			i++
		}
		if i == len(part) {
			break
		}
		switch c := part[i]; c {
		case '"':
			s.inString = false
			if s.depth == 0 {
				return i + 1, true, nil
			}
		case '\\':
			s.escaped = true
		default:
			return i, false, fmt.Errorf("a string has the control character 0x%02x, which JSON has only as an escape", c)
		}
		i++
	}
	return len(part), false, nil
}
