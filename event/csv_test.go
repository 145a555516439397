package event

import (
	"encoding/csv"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/message"
)

func newCSV(t *testing.T, c CSVConfig) *CSV {
	t.Helper()
	s, err := NewCSV("csv", c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// readCSV returns the file as rows of column name to non-empty cell.
func readCSV(t *testing.T, path string) (rows []map[string]string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, cells := range all[1:] {
		row := map[string]string{}
		for i, c := range cells {
			if c != "" {
				row[all[0][i]] = c
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func TestAccountingFileReadsAsPowerMTAUsersExpect(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "acct.csv")
	s := newCSV(t, CSVConfig{File: FileConfig{Path: path}, Records: []string{"r", "d", "b", "t", "rb", "tq", "f"},
		Fields: append(DefaultFields(), "header_Message-Id", "header_Subject", "meta_n", "orcpt")})
	accepted := &message.Event{Seq: 1, Type: message.EventAccepted, Time: epoch, MessageID: messageID(1), Sender: "a@example.com",
		Recipient: "b@example.net", Tenant: "acme", Campaign: "spring", Size: 100, Origin: "smtp"}
	late := full()
	here := full()
	here.Origin, here.Reply.Local = "", false
	throttled := &message.Event{Seq: 9, Type: message.EventEgressThrottled, Time: epoch,
		Egress: message.Egress{Source: "ip1", Site: "mx.example.net"}, Reply: &message.Reply{Code: 421, Text: "slow down"}}
	complaint := &message.Event{Seq: 10, Type: message.EventComplained, Time: epoch, MessageID: messageID(1), Recipient: "b@example.net",
		Origin: "arf", Detail: "abuse", Category: message.Complaint}
	opened := &message.Event{Seq: 11, Type: message.EventOpened, Time: epoch, MessageID: messageID(1)}
	var batch []Record
	for _, e := range []*message.Event{accepted, late, here, throttled, complaint, opened} {
		batch = append(batch, record(e))
	}
	deliver(t, s, batch)

	id, when := messageID(1).String(), "2000-01-01 00:00:00+0000"
	bounce := func(rec, diag string) map[string]string {
		m := map[string]string{"type": rec, "timeLogged": when, "timeQueued": when, "totalSecondsQueued": "0",
			"orig": "news@example.com", "rcpt": `"odd, one"@example.net`, "dsnAction": "failed", "dsnStatus": "5.1.1",
			"dsnDiag": diag + "550 5.1.1 no such user really  [1m", "dsnMta": "mx.example.net (192.0.2.25)", "bounceCat": "bad-mailbox",
			"dlvType": "smtp", "dlvDestinationIp": "192.0.2.25", "dlvSize": "10240", "vmta": "ip1", "vmtaPool": "bulk",
			"jobId": `spring "sale"`, "queue": "example.net/ip1", "dlvTlsProtocol": "TLSv1.3", "dlvTlsCipher": "TLS_AES_128_GCM_SHA256",
			"messageId": messageID(7).String(), "recipientId": messageID(7).String() + ".3",
			"eventId": message.EventID(full().Time, 42).String(), "header_Message-Id": "x@example.com", "meta_n": `[1,{"x":"}"}]`}
		if rec == "rb" {
			m["format"] = "dsn"
		}
		return m
	}
	want := []map[string]string{
		{"type": "r", "timeLogged": when, "timeQueued": when, "totalSecondsQueued": "0", "orig": "a@example.com", "rcpt": "b@example.net",
			"srcType": "smtp", "dlvSize": "100", "jobId": "spring", "queue": "example.net", "messageId": id, "recipientId": id + ".0",
			"eventId": message.EventID(epoch, 1).String()},
		bounce("rb", "x-tradewind;"), bounce("b", "smtp;"),
		{"type": "tq", "timeLogged": when, "dsnAction": "delayed", "dsnStatus": "4.0.0", "dsnDiag": "smtp;421 slow down", "dlvType": "smtp",
			"vmta": "ip1", "queue": "mx.example.net/ip1", "eventId": message.EventID(epoch, 9).String()},
		{"type": "f", "timeLogged": when, "timeQueued": when, "totalSecondsQueued": "0", "rcpt": "b@example.net", "bounceCat": "other",
			"queue": "example.net", "format": "arf", "feedbackType": "abuse", "messageId": id, "recipientId": id + ".0",
			"eventId": message.EventID(epoch, 10).String()},
	}
	if d := cmp.Diff(want, readCSV(t, path)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestDefaultRecordsAreDeliveriesAndBounces(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "acct.csv")
	s := newCSV(t, CSVConfig{File: FileConfig{Path: path}, Fields: []string{"timeLogged", "rcpt"}, Times: "unix"})
	var batch []Record
	for i, typ := range []message.EventType{message.EventAccepted, message.EventDelivered, message.EventDeferred, message.EventExpired, message.EventComplained} {
		batch = append(batch, record(&message.Event{Seq: uint64(i), Type: typ, Time: epoch, Recipient: "a@example.com"}))
	}
	batch = append(batch, record(full())) // a late bounce: rb was not asked for
	deliver(t, s, batch)
	wantFile(t, path, "type,timeLogged,rcpt\nd,946684800,a@example.com\nb,946684800,a@example.com\n")
}

func TestHostileTextStaysInItsCell(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		guard   bool
		in, out string
	}{
		"plain":              {false, "x", "x"},
		"comma and quote":    {false, `a,"b"`, `a,"b"`},
		"line breaks":        {false, "a\r\nd,evil\n", "a  d,evil "},
		"formula as it is":   {false, "=1+1", "=1+1"},
		"formula guarded":    {true, "=1+1", "'=1+1"},
		"tab formula":        {true, "\t=1", "' =1"},
		"minus guarded":      {true, "-1", "'-1"},
		"nothing to guard":   {true, "1=1", "1=1"},
		"spaces at the edge": {false, " x ", " x "},
	} {
		s := &CSV{guard: tc.guard}
		line := string(s.appendCell(append([]byte("d"), ','), tc.in)) + "\n"
		rows, err := csv.NewReader(strings.NewReader(line)).ReadAll()
		if err != nil || len(rows) != 1 || len(rows[0]) != 2 || rows[0][1] != tc.out {
			t.Errorf("%s: %q reads back as %q, %v", name, line, rows, err)
		}
	}
}

func TestChangedColumnsBeginANewFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "acct.csv")
	c := CSVConfig{File: FileConfig{Path: path, Now: func() time.Time { return epoch }}, Fields: []string{"rcpt"}}
	s := newCSV(t, c)
	ev := []Record{record(&message.Event{Type: message.EventDelivered, Time: epoch, Recipient: "a@example.com"})}
	deliver(t, s, ev)
	deliver(t, newCSV(t, c), ev) // same columns: goes on
	wantFile(t, path, "type,rcpt\nd,a@example.com\nd,a@example.com\n")
	c.Fields = []string{"rcpt", "orig"}
	deliver(t, newCSV(t, c), ev)
	wantFile(t, path, "type,rcpt,orig\nd,a@example.com,\n")
	files, err := listRotated(path)
	if err != nil || len(files) != 1 {
		t.Fatalf("got %v, %v, want the old file beside", files, err)
	}
	wantFile(t, files[0].full, "type,rcpt\nd,a@example.com\nd,a@example.com\n")
}

func TestEventThatCannotBeReadHoldsUpNobody(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "acct.csv")
	s := newCSV(t, CSVConfig{File: FileConfig{Path: path}, Fields: []string{"rcpt"}})
	deliver(t, s, []Record{
		{Seq: 1, Type: message.EventDelivered, JSON: []byte(`{"schema_version":99}`)},
		record(&message.Event{Type: message.EventDelivered, Time: epoch, Recipient: "a@example.com"}),
	})
	wantFile(t, path, "type,rcpt\nd,a@example.com\n")
}

func TestCSVConfigurationIsChecked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]CSVConfig{
		"record": {Records: []string{"x"}},
		"field":  {Fields: []string{"colour"}},
		"meta":   {Fields: []string{"meta_"}},
		"times":  {Times: "stardate"},
	} {
		c.File.Path = filepath.Join(t.TempDir(), "acct.csv")
		if _, err := NewCSV("csv", c); !errors.Is(err, ErrCSV) {
			t.Errorf("%s: got %v, want ErrCSV", name, err)
		}
	}
}
