"""The pages: `/me`, where users see and change what is known about them, and `/admin` for the team.

    app          from an HTTP request to a page or a change
    sessions     signed links, cookies, and who is signed in
    subject      whose profile a request is about
    forms        what a form brings, and whether one of our pages sent it
    profile      the pages of one profile; known, what they read of the store; view, the same in sentences
    drafts       what was typed and not taken
    actions      what the forms do; changes, what a button does to a summary
    team         the team's list of users
    tryout       a prompt answered with and without the summary
    render       templates, files and headers; strings, every word of the pages (strings.toml, languages)
    colour       the product's colour, and its contrast

`templates/` is HTML; `static/` has the style sheet and the little script: everything works without it.
"""
