package app

import (
	"encoding/json"
	"net/http"

	"github.com/tradewind-mta/tradewind/api"
)

// adminRoutes are the operations behind the admin listener that need the whole
// engine.
func (a *App) adminRoutes() []api.AdminRoute {
	return append(append(a.quarantineRoutes(), a.operateRoutes()...), []api.AdminRoute{
		{Pattern: "GET /v1/queues", Serve: a.getQueues},
		{Pattern: "GET /v1/trace", Serve: a.getTrace},
		{Pattern: "GET /v1/keys", Serve: a.getKeys},
		{Pattern: "POST /v1/keys", Serve: a.postKey},
		{Pattern: "DELETE /v1/keys/{name}", Serve: a.deleteKey},
	}...)
}

func reply(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

// maxSites bounds what one listing of queues shows.
const maxSites = 1000

func (a *App) getQueues(w http.ResponseWriter, _ *http.Request, _ *api.Principal) error {
	st := a.queue.Stats()
	return reply(w, http.StatusOK, map[string]any{
		"waiting": st.Waiting, "in_memory": st.InMemory, "active_queues": st.Queues,
		"sites": a.mta.Sites(maxSites),
	})
}

func (a *App) getKeys(w http.ResponseWriter, _ *http.Request, _ *api.Principal) error {
	list, err := a.keys.List()
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, map[string]any{"keys": list})
}

func (a *App) postKey(w http.ResponseWriter, r *http.Request, _ *api.Principal) error {
	var rec api.KeyRecord
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&rec); err != nil {
		return &api.Problem{Title: "Bad Request", Status: http.StatusBadRequest, Code: "bad_json", Detail: err.Error()}
	}
	if _, ok, _ := a.tenant(rec.Tenant); !ok && rec.Tenant != "" {
		return &api.Problem{Title: "Unprocessable", Status: http.StatusUnprocessableEntity, Code: "unknown_tenant", Detail: "no [[tenant]] is named " + rec.Tenant}
	}
	secret, err := a.keys.Create(rec)
	if err != nil {
		return &api.Problem{Title: "Unprocessable", Status: http.StatusUnprocessableEntity, Code: "bad_key", Detail: err.Error()}
	}
	return reply(w, http.StatusCreated, map[string]string{"name": rec.Name, "key": secret})
}

func (a *App) deleteKey(w http.ResponseWriter, r *http.Request, _ *api.Principal) error {
	n, err := a.keys.Revoke(r.PathValue("name"))
	if err != nil {
		return err
	}
	if n == 0 {
		return api.ErrNotFound
	}
	return reply(w, http.StatusOK, map[string]int{"revoked": n})
}
