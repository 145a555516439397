package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tradewind-mta/tradewind/inject"
)

// personalised is a request for n recipients of a text of about 10 KB with
// three values each.
func personalised(n int, text string) []byte {
	var rcpts []any
	for i := range n {
		rcpts = append(rcpts, map[string]any{"email": fmt.Sprintf("user%d@example.net", i), "name": "Bob", "substitutions": map[string]any{"name": "Bob", "order": i, "link": "https://example.com/?a=1&b=2"}})
	}
	b, err := json.Marshal(map[string]any{"from": "News <news@example.com>", "subject": "Your order {{order}}", "html": text, "recipients": rcpts})
	if err != nil {
		panic(err)
	}
	return b
}

// BenchmarkPersonalised is the whole request, from JSON to prepared mail and
// answer, with a queue that stores nothing. The figure to watch is
// ns/recipient.
func BenchmarkPersonalised(b *testing.B) {
	for name, text := range map[string]string{
		"ascii":   "<p>Dear {{name}}, <a href=\"{{link}}\">{{order}}</a></p>\n" + strings.Repeat("<p>Lorem ipsum dolor sit amet, consectetur adipisici elit, sed eiusmod.</p>\n", 130),
		"umlauts": "<p>Dear {{name}}, <a href=\"{{link}}\">{{order}}</a></p>\n" + strings.Repeat("<p>Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.</p>\n", 130),
	} {
		b.Run(name, func(b *testing.B) {
			const n = 1000
			w := newWorld(b, Config{}, inject.Deps{})
			body := string(personalised(n, text))
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(body))
				r.Header.Set("Authorization", "Bearer k")
				rec := httptest.NewRecorder()
				w.handler.ServeHTTP(rec, r)
				if rec.Code != 202 {
					b.Fatal(rec.Body)
				}
				w.queue.subs = w.queue.subs[:0]
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/recipient")
		})
	}
}

func BenchmarkOneMessage(b *testing.B) {
	w := newWorld(b, Config{}, inject.Deps{})
	body := with(map[string]any{"text": strings.Repeat("Lorem ipsum dolor sit amet, consectetur adipisici elit.\n", 180)})
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(context.Background(), "POST", "/v1/messages", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer k")
		rec := httptest.NewRecorder()
		w.handler.ServeHTTP(rec, r)
		if rec.Code != 202 {
			b.Fatal(rec.Body)
		}
		w.queue.subs = w.queue.subs[:0]
	}
}
