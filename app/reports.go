package app

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/tradewind-mta/tradewind/api"
	"github.com/tradewind-mta/tradewind/bounce"
	"github.com/tradewind-mta/tradewind/configs"
	"github.com/tradewind-mta/tradewind/report"
	"github.com/tradewind-mta/tradewind/token"
)

// openReports makes the mailbox for what comes back, where there is a bounce
// domain: also without a listener, for what was taken before it went.
func (a *App) openReports() error {
	if a.mint.domain == "" {
		return nil
	}
	b := &a.cfg.Bounce
	reporters, err := b.ParseReporters()
	if err != nil {
		return err
	}
	served := false
	for i := range a.cfg.SMTP {
		served = served || a.cfg.SMTP[i].Role == configs.RoleBounce
	}
	if !served {
		a.log.Warn("mail goes out with return paths at bounce.domain, and no [[smtp]] listener has role bounce", "domain", a.mint.domain)
	}
	a.reports, err = report.New(report.Config{
		Domain: a.mint.domain, Feedback: b.Feedback, Life: a.cfg.TokenLife(), Reporters: reporters,
		PerCampaign: b.UnsubscribeScope == "campaign", MaxWaiting: int64(b.MaxWaiting),
		MaxHeld: b.QuarantineMax, MaxHeldBytes: int64(b.QuarantineSize), MaxHeldAge: b.QuarantineAge,
	}, report.Deps{
		DB: a.spool, Journal: a.journal, List: a.list,
		Ring:  func() *token.Ring { return a.mint.ring.Load() },
		Rules: func() *bounce.Classifier { return a.rules.Load() },
		TXT:   a.resolver.TXT, Now: a.opt.Now, Logger: a.log, Metrics: a.registry,
	})
	return err
}

// quarantineRoutes let an operator look at reports that were not believed.
func (a *App) quarantineRoutes() []api.AdminRoute {
	return []api.AdminRoute{
		{Pattern: "GET /v1/quarantine", Serve: a.getQuarantine},
		{Pattern: "GET /v1/quarantine/{id}", Serve: a.getQuarantined},
	}
}

// maxQuarantine bounds one listing.
const maxQuarantine = 1000

func (a *App) getQuarantine(w http.ResponseWriter, r *http.Request, _ *api.Principal) error {
	list := []*report.Held{}
	after, err := number(r.FormValue("after"))
	if err != nil {
		return err
	}
	if a.reports != nil {
		if list, err = a.reports.Held(after, maxQuarantine); err != nil {
			return err
		}
	}
	next := ""
	if len(list) == maxQuarantine {
		next = strconv.FormatUint(list[len(list)-1].ID, 10)
	}
	if list == nil {
		list = []*report.Held{}
	}
	return reply(w, http.StatusOK, struct {
		Reports []*report.Held `json:"reports"`
		Next    string         `json:"next,omitempty"`
	}{list, next})
}

func number(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, &api.Problem{Title: "Bad Request", Status: http.StatusBadRequest, Code: "bad_number", Detail: "not a number"}
	}
	return n, nil
}

// getQuarantined sends the mail itself, as text: it is a stranger's and must
// not be shown as anything else.
func (a *App) getQuarantined(w http.ResponseWriter, r *http.Request, _ *api.Principal) error {
	id, err := number(r.PathValue("id"))
	if err != nil || a.reports == nil {
		return api.ErrNotFound
	}
	h, err := a.reports.Show(id)
	if errors.Is(err, report.ErrNotHeld) {
		return api.ErrNotFound
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Disposition", "attachment; filename=report.txt")
	_, err = w.Write(h.Contents)
	return err
}
