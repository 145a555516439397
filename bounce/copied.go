package bounce

import "strings"

// splitCopy separates a report's words from the copy of the message under
// them: at a line that announces it, or where a block of header fields begins.
func (x *lexicon) splitCopy(text string) (report, copied string) {
	for pos, n := 0, 0; pos < len(text) && n < 2000; n++ {
		end := strings.IndexByte(text[pos:], '\n')
		if end < 0 {
			end = len(text) - pos
		}
		line := text[pos : pos+end]
		next := min(pos+end+1, len(text))
		if n > 0 && x.announcesCopy(line) {
			rest := strings.TrimLeft(text[next:], "\n \t-=*_|")
			// Only if something that looks like mail follows soon: the words
			// alone also stand in sentences.
			if k := headerBlock(text[next:], 12); k >= 0 {
				if tellsReply(text[next : next+k]) {
					pos = next + k // the announcement was of a transcript
				}
				return text[:pos], strings.TrimLeft(text[next+k:], "\n")
			}
			if len(strings.TrimSpace(line)) > 0 && strings.ContainsAny(line, "-=*|") && n > 1 {
				return text[:pos], rest
			}
		}
		if n > 0 && isFieldLine(line) && headerBlock(text[pos:], 1) == 0 && mailFields(text[pos:]) >= 3 {
			return text[:pos], text[pos:]
		}
		pos = next
	}
	return text, ""
}

func (x *lexicon) announcesCopy(line string) bool {
	if len(line) > 160 || len(line) < 8 {
		return false
	}
	return x.has(x.find(plain(line)), copyMarkers)
}

// headerBlock returns where, within the first lines of text, a header begins,
// or -1.
func headerBlock(text string, lines int) int {
	pos := 0
	for range lines {
		if pos >= len(text) {
			return -1
		}
		if isFieldLine(text[pos:]) && mailFields(text[pos:]) >= 2 {
			return pos
		}
		i := strings.IndexByte(text[pos:], '\n')
		if i < 0 {
			return -1
		}
		pos += i + 1
	}
	return -1
}

// isFieldLine reports whether the line that s begins with is a header field at
// the left margin.
func isFieldLine(s string) bool {
	i := strings.IndexByte(s, ':')
	return i > 0 && i < 60 && isFieldName([]byte(s[:i])) && s[i-1] != ' '
}

// mailFields counts the fields of mail in the header that s begins with. The
// fields of a delivery status do not count.
func mailFields(s string) int {
	count := 0
	for range 40 {
		if s == "" {
			break
		}
		var line string
		line, s, _ = strings.Cut(s, "\n")
		if line == "" || strings.TrimSpace(line) == "" {
			break
		}
		if line[0] == ' ' || line[0] == '\t' {
			continue
		}
		if !isFieldLine(line) {
			break
		}
		switch strings.ToLower(line[:strings.IndexByte(line, ':')]) {
		case "from", "to", "subject", "message-id", "date", "received", "return-path", "mime-version", "content-type",
			"content-transfer-encoding", "dkim-signature", "x-mailer", "reply-to", "cc", "sender", "x-originating-ip", "user-agent", "delivered-to", "x-received", "domainkey-signature", "list-id", "list-unsubscribe":
			count++
		}
	}
	return count
}
