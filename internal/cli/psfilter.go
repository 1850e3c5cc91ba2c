package cli

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/state"
)

// filterForms are the filters of ps, as its help has them.
var filterForms = []string{"id=EXPRESSION", "name=EXPRESSION", "status=STATE", "exited=CODE", "ancestor=IMAGE"}

// statuses are what a filter by status takes: husk's own words, and docker's for a container that has stopped.
var statuses = map[string]state.Status{
	"creating": state.Creating, "created": state.Created, "running": state.Running, "paused": state.Paused,
	"stopped": state.Stopped, "exited": state.Stopped,
}

// predicate tells whether a container fits one filter.
type predicate func(c psContainer) (bool, error)

// filter makes one of docker's filters: of several of a kind one has to fit, and of every kind one. every tells that it is about
// stopped containers too.
func (a *App) filter(filters []string) (fits predicate, every bool, err error) {
	kinds := map[string][]predicate{}
	for _, f := range filters {
		key, value, is := strings.Cut(f, "=")
		if !is || value == "" {
			return nil, false, fmt.Errorf("--filter %q: must be one of %s", f, strings.Join(filterForms, ", "))
		}
		p, err := a.predicate(key, value)
		if err != nil {
			return nil, false, fmt.Errorf("--filter %q: %w", f, err)
		}
		kinds[key] = append(kinds[key], p)
		every = every || key == "status" || key == "exited"
	}
	return func(c psContainer) (bool, error) {
		for _, kind := range kinds {
			if is, err := anyOf(kind, c); err != nil || !is {
				return false, err
			}
		}
		return true, nil
	}, every, nil
}

func anyOf(kind []predicate, c psContainer) (bool, error) {
	for _, p := range kind {
		if is, err := p(c); err != nil || is {
			return is, err
		}
	}
	return false, nil
}

func (a *App) predicate(key, value string) (predicate, error) {
	switch key {
	case "id", "name": // regular expressions with docker, which is what makes a part of a name do
		expression, err := regexp.Compile(value)
		if err != nil {
			return nil, err
		}
		return func(c psContainer) (bool, error) {
			if key == "name" && c.record.Name != "" {
				return expression.MatchString(c.record.Name), nil
			}
			return expression.MatchString(c.record.ID), nil
		}, nil
	case "status":
		status, known := statuses[value]
		if !known {
			return nil, errors.New("must be creating, created, running, paused, stopped or exited")
		}
		return func(c psContainer) (bool, error) { return c.status == status, nil }, nil
	case "exited":
		code, err := strconv.Atoi(value)
		if err != nil {
			return nil, errors.New("must be an exit code")
		}
		return func(c psContainer) (bool, error) {
			return c.status == state.Stopped && recordedCode(c.record) == code, nil
		}, nil
	case "ancestor":
		return a.madeOf(value)
	}
	return nil, fmt.Errorf("unknown; there are %s", strings.Join(filterForms, ", "))
}

// madeOf finds the containers of an image and of those that were built on it: their lowest layers are its own.
func (a *App) madeOf(name string) (predicate, error) {
	store, err := a.store()
	if err != nil {
		return nil, err
	}
	img, err := store.Get(name)
	if errors.Is(err, image.ErrNotFound) { // then no container is: images that containers are made of cannot be removed
		return func(psContainer) (bool, error) { return false, nil }, nil
	}
	if err != nil {
		return nil, err
	}
	return func(c psContainer) (bool, error) {
		m, err := loadMade(c.dir)
		if err != nil || m == nil {
			return false, err
		}
		below := len(img.Layers) > 0 && len(m.Layers) >= len(img.Layers) && slices.Equal(m.Layers[:len(img.Layers)], img.Layers)
		return m.uses(img) || below, nil
	}, nil
}

// filterWords complete a filter.
func filterWords() []string {
	words := []string{}
	for _, form := range filterForms {
		key, _, _ := strings.Cut(form, "=")
		words = append(words, key+"=")
	}
	for status := range statuses {
		words = append(words, "status="+status)
	}
	slices.Sort(words)
	return words
}

// completes has shells offer words for a flag.
func completes(cmd *cobra.Command, flag string, words ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	})
	if err != nil {
		panic(err) // a flag that does not exist
	}
}
