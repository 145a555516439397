package event

import "encoding/json"

// tenantOf returns the tenant of an event, "" if it has none. It reads only
// members of the event itself: metadata comes from the injecting client, and a
// "tenant" in there must not open another tenant's webhook (promise P6). What
// is not well formed has no tenant.
func tenantOf(b []byte) string {
	if len(b) == 0 || b[0] != '{' {
		return ""
	}
	depth := 0
	name := true // the next string at depth 1 names a member
	found := false
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',':
			name = depth == 1
		case '"':
			end := stringEnd(b, i)
			if end < 0 {
				return ""
			}
			if depth == 1 {
				if found {
					return unquote(b[i:end])
				}
				found = name && string(b[i+1:end-1]) == "tenant"
				name = false
			} else if found {
				return ""
			}
			i = end - 1
		}
	}
	return ""
}

// stringEnd is the index behind the JSON string that begins at i, or -1.
func stringEnd(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

func unquote(q []byte) string {
	for _, c := range q {
		if c == '\\' {
			var s string
			if json.Unmarshal(q, &s) != nil {
				return ""
			}
			return s
		}
	}
	return string(q[1 : len(q)-1])
}
