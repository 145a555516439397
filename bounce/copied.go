package bounce

import "strings"

// copyMarkers introduce the message that came back, in reports that do not use
// MIME for it. Lower case, found anywhere in a short line.
var copyMarkers = [...]string{
	"below this line is a copy", "original message follows", "this is a copy of", "copy of the message", "copy of your message",
	"unsent message follows", "message headers follow", "message header follows", "returned message", "below is a copy of the original",
	"header of the original message", "copy of the message header", "message text follows", "original message --", "original message==",
	"-original message", "- original message", "* original message", "original headers:", "original message headers", "original message header:", "original message follow",
	"header of original message", "returned text", "original mail header", "returned mail follows", "message contents follow", "message follows ---",
	"original message text", "original mail as follows", "start of original message", "begin original message", "en-têtes de message d'origine", "ursprüngliche nachrichtenkopfzeilen", "kopfzeilen der ursprünglichen nachricht",
	"encabezados de mensajes originales", "encabezados del mensaje original", "intestazioni originali del messaggio", "cabeçalhos de mensagens originais", "original meddelande", "oprindelige brevhoveder", "元のメッセージ", "原始邮件头", "原始郵件標頭", "исходные заголовки",
	"the original message was:", "your original message:", "text of your message", "message sent:", "the message you sent:", "the first few lines of", "--- undelivered message", "undelivered message follows", "--- message header", "----- message header", "rejected message", "--- forwarded message", "copy of the original", "message not delivered follows", "original e-mail", "your message reads", "下面是您的邮件", "原邮件",
}

// splitCopy separates a report's words from the copy of the message under
// them: at a line that announces it, or where a block of header fields begins.
func splitCopy(text string) (report, copied string) {
	for pos, n := 0, 0; pos < len(text) && n < 2000; n++ {
		end := strings.IndexByte(text[pos:], '\n')
		if end < 0 {
			end = len(text) - pos
		}
		line := text[pos : pos+end]
		next := min(pos+end+1, len(text))
		if n > 0 && announcesCopy(line) {
			rest := strings.TrimLeft(text[next:], "\n \t-=*_|")
			// Only if something that looks like mail follows soon: the words
			// alone also stand in sentences.
			if k := headerBlock(text[next:], 12); k >= 0 {
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

func announcesCopy(line string) bool {
	if len(line) > 160 || len(line) < 8 {
		return false
	}
	low := strings.ToLower(line)
	for _, m := range copyMarkers {
		if strings.Contains(low, m) {
			return true
		}
	}
	return false
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
