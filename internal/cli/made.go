package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/state"
)

// madeFile is what husk run was asked for, in the state directory. Containers of engines have none.
const madeFile = "run.json"

// made is what is kept of a `husk run` beside the configuration: what it takes to stop the container as its image says,
// and to tell of it.
type made struct {
	ImageID       string   `json:"imageId,omitempty"` // empty for a root directory of the host
	Layers        []string `json:"layers,omitempty"`
	WritableBytes uint64   `json:"writableBytes,omitempty"` // 0: what it wrote was in guest memory
	UserNetwork   bool     `json:"userNetwork,omitempty"`
	Publish       []string `json:"publish,omitempty"`
	Interactive   bool     `json:"interactive,omitempty"` // its stdin is open
	TTY           bool     `json:"tty,omitempty"`
	AutoRemove    bool     `json:"autoRemove,omitempty"`

	User *controlv1.UserNetwork `json:"user,omitempty"` // what its owner was asked for
	Etc  []*controlv1.File      `json:"etc,omitempty"`

	StopSignal  string    `json:"stopSignal,omitempty"`  // empty: TERM
	StopTimeout *int      `json:"stopTimeout,omitempty"` // seconds, negative without end; nil: defaultStopTime
	Started     time.Time `json:"started"`               // last
}

// loadMade reads what a container was made from; nil for one that husk run has not made.
func loadMade(dir *state.Dir) (*made, error) {
	data, err := os.ReadFile(dir.Path(madeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what container %q was made from: %w", dir.ID(), err)
	}
	var m made
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read what container %q was made from: %w", dir.ID(), err)
	}
	return &m, nil
}

func (m *made) save(dir *state.Dir) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := state.WriteFile(dir.Path(madeFile), data, 0o600); err != nil {
		return fmt.Errorf("save what container %q is made from: %w", dir.ID(), err)
	}
	return nil
}

// image is the container's root as an owner is asked for it; nil for a directory of the host.
func (m *made) image() *controlv1.Image {
	if m.ImageID == "" {
		return nil
	}
	return &controlv1.Image{Layers: m.Layers, WritableBytes: m.WritableBytes}
}

// uses tells whether a container is made of the image.
func (m *made) uses(img image.Image) bool { return m != nil && m.ImageID == img.ID }

// ownContainer is a container that husk run has made.
type ownContainer struct {
	dir    *state.Dir
	record state.Container
	made   *made
}

// ownContainers are the containers that husk run has made: those of engines are the engines' to stop and to remove.
func (a *App) ownContainers() (own []ownContainer, others int, err error) {
	records, dirs, err := a.all()
	if err != nil {
		return nil, 0, err
	}
	for i, r := range records {
		m, err := loadMade(dirs[i])
		if err != nil {
			a.warn("%v", err)
			continue
		}
		if m == nil {
			others++
			continue
		}
		own = append(own, ownContainer{dirs[i], r, m})
	}
	return own, others, nil
}

// selected are the ids that a verb was given, or with every those of the containers of husk run that wanted takes.
func (a *App) selected(args []string, every bool, wanted func(ownContainer) bool) ([]string, error) {
	if !every {
		if len(args) == 0 {
			return nil, errors.New("name a container, or use --all")
		}
		return args, nil
	}
	if len(args) > 0 {
		return nil, errors.New("--all: takes no ids")
	}
	own, _, err := a.ownContainers()
	if err != nil {
		return nil, err
	}
	ids := []string{}
	for _, c := range own {
		if wanted(c) {
			ids = append(ids, c.record.ID)
		}
	}
	return ids, nil
}

// each does something with every container and prints the ids of those with which it could be done.
func (a *App) each(ids []string, do func(id string) error) error {
	var errs []error
	for _, id := range ids {
		if err := do(id); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := fmt.Fprintln(a.out, id); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}
